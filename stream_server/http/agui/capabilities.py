"""What the agent of a DAG can do: `AgentCapabilities` of AG-UI. Pure."""

from __future__ import annotations

from stream_server.protocol.schema import Json


def build_capabilities(dag_id: str, description: str | None) -> Json:
    identity = {"name": dag_id, "type": "airflow", **({} if not description else {"description": description})}
    return {
        "identity": identity,
        "transport": {"streaming": True, "websocket": False, "httpBinary": False, "resumable": True},
        "state": {"snapshots": True, "deltas": True, "memory": False, "persistentState": False},
        "humanInTheLoop": {"supported": True, "approvals": True, "interrupts": True, "feedback": False},
        "reasoning": {"supported": True, "streaming": True, "encrypted": False},
        "tools": {"supported": True, "clientProvided": False},
    }
