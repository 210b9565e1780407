"""Watch a run over WebSocket. Needs only the package `websockets`.

    STREAM_SERVER_TOKEN=… python examples/client.py DAG_ID RUN_ID [SERVER]

`stream_server.client.follow` also reconnects and resumes.
"""

from __future__ import annotations

import json
import os
import sys
from urllib.parse import quote

from websockets.sync.client import connect


def main(dag_id: str, run_id: str, server: str = "ws://127.0.0.1:8090") -> None:
    path = f"/api/v2/dags/{quote(dag_id)}/dagRuns/{quote(run_id, safe='')}/stream"
    token = os.environ.get("STREAM_SERVER_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with connect(server.replace("http", "ws", 1) + path, additional_headers=headers) as websocket:
        for message in websocket:
            frame = json.loads(message)
            match frame["type"]:
                case "task":
                    print(f"{frame['task_id']}: {frame['state']}")
                case "result":
                    print(f"result: {json.dumps(frame['results'])}")
                case "failure":
                    print(f"failure: {frame['reason']} in {frame['task_id']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
