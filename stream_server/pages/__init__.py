"""The run page and the chat page, and what they ask for beside streams."""
