"""AG-UI 1.0, so that agent UIs such as CopilotKit can ask DAGs."""
