"""Examples of frames and bodies, for the API descriptions and `docs/protocol.md`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

import msgspec

from stream_server.protocol.bodies import (
    Cancelled,
    DagItem,
    DagList,
    Edge,
    FailureInfo,
    Health,
    InputReceipt,
    Node,
    Readiness,
    RunAnswer,
    RunItem,
    RunList,
    Session,
    Structure,
    TailReadiness,
    Ticket,
    WaitLine,
)
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import JournalPosition, ResumeToken
from stream_server.protocol.frame_members import Reference
from stream_server.protocol.frames import (
    Ack,
    AuthExpiring,
    Close,
    End,
    Failure,
    Ping,
    Refusal,
    Reset,
    Result,
    Resumed,
    RunInfo,
    RunTransition,
    Snapshot,
    TaskInfo,
    TaskTransition,
    Waiting,
)
from stream_server.protocol.input_frames import Input, InputAnswered, InputParam, InputUser
from stream_server.protocol.output_frames import (
    Chunk,
    Progress,
    Report,
    Thinking,
    ToolCall,
    ToolRequest,
    ToolResponse,
    ToolResult,
)
from stream_server.protocol.wire import Wire

DAG_ID = "chat_answer"
RUN_ID = "manual__2026-11-22T14:21:10+00:00"

JOURNAL_EPOCH = "4c1f0be2a9d7"

START_TOKEN = ResumeToken(JournalPosition(JOURNAL_EPOCH, 1093, 1095, (1093,)))
RESULT_TOKEN = ResumeToken(JournalPosition(JOURNAL_EPOCH, 1098, 1098), "result")
END_TOKEN = ResumeToken(JournalPosition(JOURNAL_EPOCH, 1099, 1099), "result", has_ended=True)


def _at(second: float) -> datetime:
    return datetime(2026, 11, 22, 14, 21, int(second), round(second % 1 * 1e6), timezone.utc)


VALUE = msgspec.Raw(b'{"text":"because"}')

LARGE_VALUE = Reference(
    href="/api/v2/dags/report/dagRuns/r1/taskInstances/render/xcomEntries/return_value",
    bytes=7340032,
)

ASKED_AT = "2026-11-22T14:21:12.300000Z"

ADA = InputUser(id="1", name="Ada")

REQUEST: dict[str, Any] = {
    "dag_id": DAG_ID,
    "run_id": RUN_ID,
    "task_id": "approve",
    "map_index": -1,
    "try_number": 1,
    "asked_at": _at(12.3),
}
"""What identifies a request for human input."""

OUTPUT: dict[str, Any] = {
    "dag_id": DAG_ID,
    "run_id": RUN_ID,
    "seq": 42,
    "at": _at(11.61),
    "task_id": "answer",
    "map_index": -1,
    "try_number": 1,
}
"""What frames with output of a task have in common."""

ARGUMENTS = msgspec.Raw(b'{"city":"Paris"}')

STREAM = (
    Wire(
        Snapshot(
            dag_id=DAG_ID,
            run_id=RUN_ID,
            run=RunInfo(state="running", queued_at=_at(10.8), start_date=_at(10.9), end_date=None, clear_number=0),
            tasks=[
                TaskInfo(task_id="answer", map_index=-1, try_number=1, state="queued", start_date=None, end_date=None)
            ],
            result_tasks=["answer"],
        ),
        START_TOKEN,
    ),
    Wire(
        TaskTransition(
            dag_id=DAG_ID,
            run_id=RUN_ID,
            seq=41,
            at=_at(11.402),
            task_id="answer",
            map_index=-1,
            try_number=1,
            state="running",
            previous_state="queued",
        )
    ),
    Wire(Result(dag_id=DAG_ID, run_id=RUN_ID, results={"answer": VALUE}, seq=43, at=_at(11.8)), RESULT_TOKEN),
    Wire(End(dag_id=DAG_ID, run_id=RUN_ID, state="running", outcome="result"), END_TOKEN),
)
"""A short stream of one run, to its end."""

FRAMES = (
    *STREAM,
    Wire(
        RunTransition(
            dag_id=DAG_ID,
            run_id=RUN_ID,
            seq=37,
            at=_at(10.9),
            state="running",
            previous_state="queued",
            clear_number=0,
        )
    ),
    Wire(Waiting(dag_id=DAG_ID, run_id=RUN_ID, reason="active_runs", active_runs=16)),
    Wire(Result(dag_id="report", run_id="r1", results={}, references={"render": LARGE_VALUE})),
    Wire(
        Result(
            dag_id="squares",
            run_id="r1",
            results={"square": msgspec.Raw(b"[1,9]")},
            map_indexes={"square": [0, 2]},
            seq=61,
            at=_at(15),
        )
    ),
    Wire(
        End(
            dag_id=DAG_ID,
            run_id=RUN_ID,
            state="success",
            outcome="none",
            reason="task_skipped",
            task_id="answer",
        )
    ),
    Wire(
        Failure(
            dag_id=DAG_ID,
            run_id=RUN_ID,
            reason="task_failed",
            task_id="retrieve",
            map_index=-1,
            try_number=2,
            state="failed",
            predicted=True,
            seq=52,
            at=_at(14),
        )
    ),
    Wire(Result(dag_id=DAG_ID, run_id=RUN_ID, results={}, withheld=True, seq=43, at=_at(11.8))),
    Wire(Chunk(**OUTPUT, index=1, value=msgspec.Raw(b'"Bec"'))),
    Wire(Progress(**OUTPUT, index=0, value=Report(fraction=0.5, text="writing"))),
    Wire(Thinking(**OUTPUT, index=2, value="The user asks for the weather. ")),
    Wire(ToolCall(**OUTPUT, index=3, value=ToolRequest(id="c1", name="get_weather", arguments=ARGUMENTS))),
    Wire(ToolResult(**OUTPUT, index=4, value=ToolResponse(id="c1", result=msgspec.Raw(b'{"celsius":21}')))),
    Wire(ToolResult(**OUTPUT, index=4, value=ToolResponse(id="c1", error="No such city"))),
    Wire(
        Input(
            **REQUEST,
            seq=61,
            at=_at(12.31),
            subject="Send it?",
            body="The answer is *because*.",
            options=["Approve", "Reject"],
            defaults=["Reject"],
            params={
                "reason": InputParam(
                    value=msgspec.Raw(b"null"), description="Why?", schema=msgspec.Raw(b'{"type":["string","null"]}')
                )
            },
            assignees=[ADA],
            expires_at=_at(59),
        )
    ),
    Wire(
        Input(
            **REQUEST,
            reference=Reference(
                href="/api/v2/dags/chat_answer/dagRuns/r1/taskInstances/approve/-1/hitlDetails", bytes=300000
            ),
        )
    ),
    Wire(
        InputAnswered(
            **REQUEST,
            seq=64,
            at=_at(31.5),
            answered_at=_at(31.49),
            by=ADA,
            chosen_options=["Approve"],
            params_input={"reason": msgspec.Raw(b'"fine"')},
        )
    ),
    Wire(InputAnswered(**REQUEST, answered_at=_at(59.8), expired=True, chosen_options=["Reject"])),
    Wire(Resumed(dag_id=DAG_ID, run_id=RUN_ID, since=str(START_TOKEN))),
    Wire(Reset(dag_id=DAG_ID, run_id=RUN_ID, reason="cleared")),
    Wire(
        Close(code=CloseCode.DRAINING, reason="The server is shutting down", reconnect=True, retry_ms=1840),
    ),
    Wire(Ping()),
    Wire(AuthExpiring(expires_at=_at(59))),
    Wire(Ack(op="subscribe", id="a")),
    Wire(
        Refusal(
            id="b",
            problem="urn:stream-server:problem:run-not-found",
            title="Run not found",
            status=404,
            detail=f"DAG '{DAG_ID}' has no run 'r7'",
        )
    ),
)
"""At least one of each type."""

RUN_ITEM = RunItem(
    dag_id=DAG_ID,
    run_id=RUN_ID,
    state="running",
    run_type="manual",
    queued_at=_at(10.8),
    start_date=_at(10.9),
    end_date=None,
)

STRUCTURE = Structure(
    dag_id=DAG_ID,
    run_id=RUN_ID,
    nodes=[
        Node(
            task_id="ask",
            group_id=None,
            operator="@task",
            is_mapped=False,
            is_setup=False,
            is_teardown=False,
            is_result=False,
        ),
        Node(
            task_id="answer",
            group_id=None,
            operator="@task",
            is_mapped=False,
            is_setup=False,
            is_teardown=False,
            is_result=True,
        ),
    ],
    groups=[],
    edges=[Edge(source="ask", target="answer")],
)

BODIES: tuple[msgspec.Struct, ...] = (
    RunAnswer(dag_id=DAG_ID, dag_run_id=RUN_ID, state="running", outcome="result", results={"answer": VALUE}),
    RunAnswer(
        dag_id=DAG_ID,
        dag_run_id=RUN_ID,
        state="running",
        outcome="failure",
        failure=FailureInfo(
            reason="task_failed", task_id="retrieve", map_index=-1, try_number=2, state="failed", predicted=True
        ),
    ),
    RunAnswer(
        dag_id=DAG_ID,
        dag_run_id=RUN_ID,
        state="success",
        outcome="none",
        reason="task_skipped",
        task_id="answer",
    ),
    RunAnswer(
        dag_id=DAG_ID, dag_run_id=RUN_ID, state="running", outcome="pending", tasks={"running": 1, "no_status": 2}
    ),
    Cancelled(dag_id=DAG_ID, dag_run_id=RUN_ID, state="failed"),
    Ticket(
        ticket="pRVLnkv0pAxOKJ4DDVu0XrDMKfwb5X8gkRVb2zgJQ1U",
        expires_at=datetime(2026, 11, 22, 14, 21, 40, tzinfo=timezone.utc),
        paths=[f"/api/v2/dags/{DAG_ID}/dagRuns/{RUN_ID}/stream"],
    ),
    InputReceipt(
        dag_id=DAG_ID,
        dag_run_id=RUN_ID,
        task_id="approve",
        map_index=-1,
        answered_at=_at(31.49),
        by=ADA,
        chosen_options=["Approve"],
        params_input={"reason": "fine"},
    ),
    WaitLine(state="success", results={"answer": VALUE}),
    Health(status="ok"),
    RunList(runs=[RUN_ITEM], cursor=str(START_TOKEN)),
    DagList(dags=[DagItem(dag_id=DAG_ID, description="Answers questions.", is_paused=False)]),
    STRUCTURE,
    Session(signed_in=False, airflow_ui_url="https://airflow.example.com", can_sign_in=True),
    Readiness(status="ready", problems=[], warnings=[], tail=TailReadiness(connected=True, doorbell=True)),
)
"""Bodies of responses that are not streams."""


def frame_examples(wires: Iterable[Wire]) -> Mapping[str, list[Any]]:
    """Return examples of frames as JSON values, by type."""
    found: dict[str, list[Any]] = {}
    for wire in wires:
        found.setdefault(wire.type, []).append(msgspec.json.decode(wire.text))
    return found


def body_examples(kind: type[msgspec.Struct]) -> list[Any]:
    """Return examples of bodies of one type as JSON values."""
    return [msgspec.json.decode(msgspec.json.encode(answer)) for answer in BODIES if isinstance(answer, kind)]
