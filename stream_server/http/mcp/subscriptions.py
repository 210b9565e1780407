"""`subscriptions/listen` of revision 2026-07-28: a client is notified of changes of tasks and of resources."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from stream_server.auth.authorizer import Caller
from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey
from stream_server.errors import AirflowRefused, RunNotFound
from stream_server.http.chat.dags import HIDDEN_STATUSES
from stream_server.http.chat.run import AnsweringRun, watch_run
from stream_server.http.chat.translated_stream import KEEP_ALIVE, MEDIA_TYPE
from stream_server.http.delivery.asgi_scope import abort_response
from stream_server.http.delivery.scheduler import WriteScheduler
from stream_server.http.delivery.streaming_body import HEADERS, wait_for_disconnect
from stream_server.http.mcp.call_stream import TRANSPORT
from stream_server.http.mcp.cancelled_tasks import was_cancelled
from stream_server.http.mcp.messages import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    RpcError,
    build_error,
    build_notification,
    build_response,
    encode_event,
)
from stream_server.http.mcp.references import CallReference, decode_reference, parse_run_uri
from stream_server.http.mcp.requests import McpRequest
from stream_server.http.mcp.tasks import RunCollector, build_current_task
from stream_server.http.state import State
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Close, Result
from stream_server.protocol.schema import Json

MAX_LISTENED = 20
"""Tasks and resources of one subscription."""

SUBSCRIPTION_META = "io.modelcontextprotocol/subscriptionId"


class _Listened(NamedTuple):
    """A task or a resource, and its run."""

    run: AnsweringRun
    name: str
    """The URI of the resource, or the id of the task."""

    reference: CallReference | None
    """That of a task; `None` for a resource."""

    collector: RunCollector


async def listen(request: Request, caller: Caller, wanted: McpRequest) -> Response:
    """Return the stream of a subscription. What the caller may not see is left out, as what does not exist."""
    wants = wanted.params.get("notifications")
    if not isinstance(wants, dict):
        raise RpcError(INVALID_PARAMS, "`params.notifications` must be an object")
    uris = _read_texts(wants, "resourceSubscriptions")
    task_ids = _read_texts(wants, "taskIds") if wanted.wants_tasks else []
    if len(uris) + len(task_ids) > MAX_LISTENED:
        raise RpcError(INVALID_PARAMS, f"A subscription has at most {MAX_LISTENED} resources and tasks together")
    state: State = request.scope["state"]
    stream = ListenStream(state, wanted)
    try:
        for uri in uris:
            found = parse_run_uri(uri)
            await stream.add(request, caller, uri, None if found is None else found[0])
        for task_id in task_ids:
            reference = decode_reference(task_id, CallReference)
            await stream.add(
                request, caller, task_id, None if reference is None else reference.key, reference=reference
            )
    except BaseException:
        stream.close()
        raise
    return stream


def _read_texts(wants: dict[str, Any], name: str) -> list[str]:
    """Return a list of different texts."""
    texts = wants.get(name) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RpcError(INVALID_PARAMS, f"`params.notifications.{name}` must be a list of strings")
    return [*dict.fromkeys(texts)]


class ListenStream(Response):
    """Server-sent events of a subscription.

    It ends when no run can change any more, or when the server stops; with an error if changes of a run can't be sent.

    Args:
        state: For permissions, intervals and counters.
        wanted: The request.
    """

    media_type = MEDIA_TYPE

    def __init__(self, state: State, wanted: McpRequest) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._state, self._wanted = state, wanted
        self._scheduler: WriteScheduler = state["scheduler"]
        self._listened: list[_Listened] = []
        self._shown: dict[str, object] = {}
        """What the client knows of each task."""

        self._honored: dict[str, list[str]] = {}

    async def add(
        self,
        request: Request,
        caller: Caller,
        name: str,
        key: RunKey | None,
        *,
        reference: CallReference | None = None,
    ) -> None:
        """Listen to a task or a resource, if there is such a run that the caller may see."""
        if key is None:
            return
        options = WatchOptions(until="run" if reference is None else "result", include_output=False)
        try:
            run = await watch_run(request, caller, key, options=options)
        except (RunNotFound, AirflowRefused) as error:
            if error.status not in HIDDEN_STATUSES:
                raise
            return
        self._listened.append(_Listened(run, name, reference, RunCollector()))
        self._honored.setdefault("resourceSubscriptions" if reference is None else "taskIds", []).append(name)

    def close(self) -> None:
        for one in self._listened:
            one.run.subscription.close()

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        due = asyncio.Event()
        gone = asyncio.create_task(wait_for_disconnect(receive), name="disconnect")
        gone.add_done_callback(lambda _: due.set())
        with ExitStack() as stack:
            stack.callback(gone.cancel)
            stack.enter_context(self._scheduler.counters[TRANSPORT].count_waiting())
            for one in self._listened:
                stack.enter_context(closing(one.run.subscription))
                one.run.subscription.on_due(due.set)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if await self._write(self._acknowledge(), send) and await self._send_changes(due, gone, send):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                abort_response(scope)

    async def _send_changes(self, due: asyncio.Event, gone: asyncio.Task[None], send: Send) -> bool:
        """Send all changes. Return whether the client has read them."""
        while not (self._loss or all(one.run.subscription.is_finished for one in self._listened)):
            with anyio.move_on_after(self._scheduler.ping_interval):
                await due.wait()
            if gone.done():
                return False
            data = KEEP_ALIVE
            if due.is_set():
                due.clear()
                data = b"".join([await self._translate(one) for one in self._listened])
            if data and not await self._write(data, send):
                return False
        return await self._write(encode_event(self._build_end()), send)

    def _build_end(self) -> Json:
        if self._loss is not None:
            text = f"The subscription ends although runs may still change: {self._loss.reason}"
            return build_error(self._wanted.id, RpcError(INTERNAL_ERROR, text))
        return build_response(self._wanted.id, {"resultType": "complete", "_meta": self._meta})

    @property
    def _loss(self) -> Close | None:
        """Why changes of a run can't be sent any more; `None` if they can, also while the server stops as announced."""
        closed = (one.run.subscription.closed for one in self._listened if one.run.subscription.is_finished)
        return next((one for one in closed if one is not None and one.code != CloseCode.DRAINING), None)

    @property
    def _meta(self) -> Json:
        return {SUBSCRIPTION_META: self._wanted.id}

    def _acknowledge(self) -> bytes:
        return self._notify("subscriptions/acknowledged", {"notifications": self._honored})

    def _notify(self, name: str, params: Json) -> bytes:
        return encode_event(build_notification(f"notifications/{name}", {**params, "_meta": self._meta}))

    async def _translate(self, one: _Listened) -> bytes:
        """Return the notifications for the frames that are due."""
        frames = [wire.frame for wire in one.run.subscription.take()]
        is_first = one.collector.is_empty
        for frame in frames:
            one.collector.apply(frame)
        if one.reference is None:
            # The client reads the resource after the acknowledgement.
            return self._notify("resources/updated", {"uri": one.name}) if frames and not is_first else b""
        return await self._report(one, one.reference) if frames else b""

    async def _report(self, one: _Listened, reference: CallReference) -> bytes:
        """Return the notification of a task; empty if the client knows all."""
        found = one.collector.collected
        is_failed = found.has_outcome and not isinstance(found.outcome, Result)
        is_cancelled = is_failed and await was_cancelled(self._state, one.run.key, found.clear_number)
        task = build_current_task(
            one.name, reference, found, is_modern=True, elicits=self._wanted.elicits, is_cancelled=is_cancelled
        )
        now = task["status"], task.get("inputRequests"), task.get("result")
        if self._shown.get(task["taskId"]) == now:
            return b""
        self._shown[task["taskId"]] = now
        return self._notify("tasks", task)

    async def _write(self, data: bytes, send: Send) -> bool:
        with anyio.move_on_after(self._scheduler.close_timeout) as timeout:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        return not timeout.cancelled_caught
