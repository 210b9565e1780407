"""The examples of docs/python-client.md, a plain script and a notebook."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import nbformat
import pytest
from nbclient import NotebookClient

from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import ANSWER, complete_run
from support.server import RunningServer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "python-client.md").read_text()
BATCH = 8
SCRIPT_SECONDS = 60.0


@pytest.fixture
def server(trigger_server: RunningServer, stub: AirflowStub) -> RunningServer:
    """A server whose runs emit text and complete."""

    async def emit_and_complete(airflow: AirflowSql, key: Any) -> None:
        await airflow.start_task(key, "answer")
        await airflow.emit_output(key, "answer", 0, "Be", "cause")
        await complete_run(airflow, key)

    stub.then = emit_and_complete
    return trigger_server


def adapt(code: str, server: RunningServer) -> str:
    """Return the code of the page for the server, the DAG and the token of the test."""
    return code.replace("http://127.0.0.1:8090", server.url).replace("chat_answer", "chat").replace('"…"', '"t0ken"')


def recipe(heading: str, server: RunningServer) -> str:
    """Return the first example of a section."""
    section = re.split(r"^#+ ", PAGE.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    match = re.search(r"```python\n(.+?)```", section, re.DOTALL)
    assert match is not None, heading
    return adapt(match[1], server)


def execute(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}  # where Flask looks for its files
    exec(compile(code, "python-client.md", "exec", dont_inherit=True), names)
    return names


async def test_the_first_example_and_the_frames(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    code = recipe("Python client", server)
    await asyncio.to_thread(execute, code)
    assert capsys.readouterr().out == f"{ANSWER}\n"
    first_line = code.splitlines()[0]
    opening = f'{first_line}\nclient = Client("{server.url}", token="t0ken")\n'
    await asyncio.to_thread(execute, opening + recipe("Frames", server) + "\nclient.close()\n")
    assert capsys.readouterr().out == f"Because{ {'answer': ANSWER} }\n"


async def test_an_endpoint_of_fastapi(server: RunningServer) -> None:
    code = recipe("FastAPI", server)
    assert len([line for line in code.splitlines() if line]) <= 10
    names = execute(code)
    transport = httpx.ASGITransport(names["app"])
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as browser:
        response = await browser.post("/ask", params={"question": "Why?"})
    assert response.json() == ANSWER
    await names["client"].close()


async def test_an_endpoint_of_flask(server: RunningServer, stub: AirflowStub) -> None:
    names = execute(recipe("Flask", server))
    browser = names["app"].test_client()
    response = await asyncio.to_thread(browser.post, "/ask", json={"question": "Why?"})
    assert response.json == ANSWER

    async def fail(airflow: AirflowSql, key: Any) -> None:
        await airflow.start_task(key, "ask")
        await airflow.set_task(key, "ask", "failed")

    stub.then = fail
    response = await asyncio.to_thread(browser.post, "/ask", json={"question": "Why?"})
    assert (response.status_code, response.json) == (502, {"error": "task_failed", "task": "ask"})
    names["client"].close()


async def test_a_batch_started_again_attaches_to_its_runs(server: RunningServer, airflow: AirflowSql) -> None:
    code = recipe("A batch of runs", server).replace("range(100)", f"range({BATCH})")
    for _ in range(2):
        names = await asyncio.to_thread(execute, code)
        assert names["results"] == [ANSWER] * BATCH
    assert await airflow.connection.fetchval("SELECT count(*) FROM dag_run") == BATCH


async def test_a_chat_of_streamlit(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in: Streamlit is no dependency of the tests."""
    shown: list[str] = []
    clients: list[Any] = []

    class Context:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    def cache_resource(function: Any) -> Any:
        clients.append(function())
        return lambda: clients[0]

    streamlit: Any = ModuleType("streamlit")
    streamlit.secrets, streamlit.cache_resource = {"token": "t0ken"}, cache_resource
    streamlit.chat_input = lambda _label: "Why?"
    streamlit.chat_message = lambda _role: Context()
    streamlit.empty = lambda: SimpleNamespace(markdown=shown.append, write=shown.append)
    monkeypatch.setitem(sys.modules, "streamlit", streamlit)
    await asyncio.to_thread(execute, recipe("A chat with Streamlit", server))
    assert shown[-1] == "Because"
    clients[0].close()


async def test_a_chat_of_gradio(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in: Gradio is no dependency of the tests."""
    functions: list[Any] = []

    class ChatInterface:
        def __init__(self, function: Any) -> None:
            functions.append(function)

        def launch(self) -> None: ...

    gradio: Any = ModuleType("gradio")
    gradio.ChatInterface = ChatInterface
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    names = execute(recipe("A chat with Gradio", server))
    texts = await asyncio.to_thread(lambda: list(functions[0]("Why?", [])))
    assert texts[-1] == "Because"
    names["client"].close()


async def test_a_plain_script_watches_a_run(server: RunningServer) -> None:
    script = (
        "from stream_server.client import Client\n"
        f"with Client('{server.url}', token='t0ken') as client:\n"
        "    print(client.run('chat').watch().value)\n"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=SCRIPT_SECONDS,
    )
    assert (done.returncode, done.stdout) == (0, f"{ANSWER}\n"), done.stderr
    assert done.stderr.endswith(f"[{'#' * 24}] result\n")


async def test_a_notebook_shows_a_live_table_and_the_result(server: RunningServer) -> None:
    opening = f"client = Client('{server.url}', token='t0ken')"
    cells = [
        f"from stream_server.client import AsyncClient, Client\n{opening}\noutcome = client.run('chat').watch()",
        f"await AsyncClient('{server.url}', token='t0ken').run('chat').watch()",
        "stream = client.stream('chat', outcome.run_id)\nstream.result()\nstream",
        "client.wait('chat', outcome.run_id)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    await NotebookClient(notebook, timeout=SCRIPT_SECONDS, kernel_name="python3").async_execute()
    outputs = [[output["data"] for output in cell.outputs if "data" in output] for cell in notebook.cells]
    for tables in outputs[:3]:
        assert "<td>answer</td><td>success</td>" in tables[0]["text/html"]
        assert "because" in tables[0]["text/html"]
        assert "Because" in tables[0]["text/html"]
    assert len(outputs[0]) == 1, "the table is updated, not repeated"
    for shown in (outputs[1][-1], outputs[3][0]):
        assert "because" in shown["text/html"]
