"""`Client`, whose methods block. `async_client` has the same methods for asyncio."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any

from typing_extensions import Self

from stream_server.client import requests
from stream_server.client.calls import CallState
from stream_server.client.credential import Credential
from stream_server.client.errors import ConnectionLost, Refused
from stream_server.client.frames import Input
from stream_server.client.http_transport import SyncTransport
from stream_server.client.outcomes import Outcome
from stream_server.client.requests import Confirm, Request, Response, RunKey, Until, WatchOptions
from stream_server.client.responses import decode_outcome, decode_receipt, decode_state
from stream_server.client.retries import DEFAULT_PATIENCE_SECONDS, Retries, origin_of
from stream_server.client.stream_state import StreamState
from stream_server.client.sync_run import Run
from stream_server.client.sync_stream import FrameStream, RunStream
from stream_server.client.tokens import SyncTokens, TokenSource
from stream_server.client.waiting import DEFAULT_TIMEOUT_SECONDS, WaitState
from stream_server.protocol.bodies import InputReceipt


class Client:
    """A client of stream_server. All its calls may be made from any thread.

    Calls are repeated after a lost connection and after temporary errors. A repeated `trigger` or `run` never starts a
    second run: each call has an idempotency key.

    Args:
        url: Address of the server, `http://…` or `host:port`.
        token: Bearer token, or a function that returns one. It is called again when the token has expired.
        patience: Seconds without a connection after which a call or a stream fails.
        timeout: Seconds that a request other than a stream or a wait may take.
        http_client: A client of httpx or httpx2, for proxies, certificates and tests. The caller closes it.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8090",
        *,
        token: TokenSource = None,
        patience: float = DEFAULT_PATIENCE_SECONDS,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        http_client: Any = None,
    ) -> None:
        base_url = requests.parse_server_url(url)
        self._origin = origin_of(base_url)
        self._patience, self._timeout = patience, timeout
        self._tokens = SyncTokens(token)
        self._transport = SyncTransport(base_url, http_client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def trigger(
        self,
        dag_id: str,
        conf: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
        logical_date: datetime | None = None,
        note: str | None = None,
        body: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        attach: bool = False,
    ) -> Run:
        """Trigger a DAG, and return its run without waiting.

        Args:
            dag_id: The DAG.
            conf: Configuration of the run.
            run_id: ID of the run; by default Airflow's.
            logical_date: Logical date of the run.
            note: Note of the run.
            body: Further members of the body of Airflow's endpoint; none that is an argument, too.
            idempotency_key: Calls with the same key are one run, also of another process; by default a new one.
            attach: Whether a run `run_id` that exists already is returned, instead of a `Conflict`.

        Raises:
            Refused: The server or Airflow rejects the request.
            ConnectionLost: There was no connection for too long.
        """
        request = requests.trigger_request(
            dag_id,
            conf,
            run_id=run_id,
            logical_date=logical_date,
            note=note,
            body=body,
            idempotency_key=idempotency_key,
            attach=attach,
            options=WatchOptions(),
        )
        outcome = decode_outcome(self._send(request.with_query(timeout="0")))
        return self.get_run(outcome.dag_id, outcome.run_id)

    def run(
        self,
        dag_id: str,
        conf: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
        logical_date: datetime | None = None,
        note: str | None = None,
        body: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        attach: bool = False,
        results: Sequence[str] = (),
        until: Until = "result",
        confirm: Confirm = "push",
        cancel_on_disconnect: bool = False,
        progress: bool = False,
    ) -> RunStream:
        """Return a stream that triggers a DAG when its first frame is read, from the first transition of the run on.

        The arguments are those of `trigger` and `stream`. With `cancel_on_disconnect`, the run is set to failed if the
        first connection breaks and no client watches the run 5 s later; a stream that has reconnected does not cancel
        it.
        """
        options = WatchOptions(results, until, confirm)
        request = requests.trigger_request(
            dag_id,
            conf,
            run_id=run_id,
            logical_date=logical_date,
            note=note,
            body=body,
            idempotency_key=idempotency_key,
            attach=attach,
            options=options,
        )
        request = request.with_query(on_disconnect="cancel" if cancel_on_disconnect else None)
        return self._open_run_stream(request, options, None, progress=progress)

    def get_run(self, dag_id: str, run_id: str) -> Run:
        """Return a handle of a run. No request is sent."""
        return Run(self, dag_id, run_id)

    def stream(
        self,
        dag_id: str,
        run_id: str,
        *,
        results: Sequence[str] = (),
        until: Until = "result",
        confirm: Confirm = "push",
        cursor: str | None = None,
        progress: bool = False,
    ) -> RunStream:
        """Return the stream of a run.

        Args:
            dag_id: The DAG.
            run_id: The run.
            results: Tasks whose return values are the result; by default those marked in the DAG.
            until: `result` to end with the outcome, `run` to continue until the end of the run.
            confirm: `push` if a value that was committed is the result, `success` if its task must succeed, too.
            cursor: Where an earlier stream with the same arguments has ended (`RunStream.cursor`).
            progress: Whether to show the progress: a table in a notebook, else a line on the standard error output.
        """
        options = WatchOptions(results, until, confirm)
        request = requests.stream_request(RunKey(dag_id, run_id), options)
        return self._open_run_stream(request, options, cursor, progress=progress)

    def runs(
        self,
        *,
        dag_ids: str | Sequence[str] = (),
        run_ids: str | Sequence[str] = (),
        task_ids: str | Sequence[str] = (),
        states: str | Sequence[str] = (),
        types: str | Sequence[str] = (),
        tags: str | Sequence[str] = (),
        cursor: str | None = None,
    ) -> FrameStream:
        """Return the stream of all transitions of many runs. It has no end; a `Reset` without a run is about all.

        Args:
            dag_ids: Only these DAGs.
            run_ids: Only runs with these IDs.
            task_ids: Only tasks with these IDs.
            states: Only transitions into these states.
            types: Only frames of these types; by default `task` and `run`.
            tags: Only DAGs with one of these tags.
            cursor: Where an earlier stream with the same arguments has ended.
        """
        filters = {
            "dag_id": dag_ids,
            "run_id": run_ids,
            "task_id": task_ids,
            "state": states,
            "type": types,
            "tag": tags,
        }
        return FrameStream(
            self._transport, self._tokens, self._new_state(requests.many_runs_request(filters), None, cursor)
        )

    def wait(
        self,
        dag_id: str,
        run_id: str,
        *,
        results: Sequence[str] = (),
        until: Until = "result",
        confirm: Confirm = "push",
        timeout: float | None = None,
    ) -> Outcome:
        """Wait for the outcome of a run, and return it, also if it is a failure.

        Args:
            dag_id: The DAG.
            run_id: The run.
            results: As for `stream`.
            until: As for `stream`.
            confirm: As for `stream`.
            timeout: Seconds to wait; `None` for no limit.

        Raises:
            WaitTimeout: The outcome was not known in time.
        """
        key = RunKey(dag_id, run_id)
        state = WaitState(key, WatchOptions(results, until, confirm), timeout, time.monotonic())
        while True:
            poll = state.next_poll(time.monotonic())
            try:
                response = self._send(poll.request, poll.read_timeout, min(poll.patience, self._patience))
            except (Refused, ConnectionLost) as error:
                if (timeout_error := state.timeout_after(error, poll, self._patience)) is not None:
                    raise timeout_error from error
                raise
            outcome = decode_outcome(response)
            pause = state.record(outcome, response, time.monotonic())
            if pause is None:
                return outcome
            time.sleep(pause)

    def result(
        self,
        dag_id: str,
        run_id: str,
        *,
        results: Sequence[str] = (),
        until: Until = "result",
        confirm: Confirm = "push",
        timeout: float | None = None,
    ) -> Any:
        """Wait for a run, and return the value of its only result task. The arguments are those of `wait`.

        Raises:
            RunFailed: It is certain that there will be no result.
            NoResult: There is none, or several.
            WaitTimeout: The outcome was not known in time.
        """
        return self.wait(dag_id, run_id, results=results, until=until, confirm=confirm, timeout=timeout).value

    def cancel(self, dag_id: str, run_id: str) -> str:
        """Set a run to failed, and return its state: not `failed` while teardown tasks run, or if it had ended."""
        return decode_state(self._send(requests.cancel_request(RunKey(dag_id, run_id))))

    def answer(
        self,
        dag_id: str,
        run_id: str,
        question: Input | str,
        chosen_options: str | Sequence[str],
        *,
        map_index: int = -1,
        iteration: int | None = None,
        params_input: Mapping[str, Any] | None = None,
        asked_at: str | None = None,
    ) -> InputReceipt:
        """Answer a request for human input of a task, and return the answer as it was written.

        Args:
            dag_id: The DAG.
            run_id: The run.
            question: The frame `input`, or the ID of the task.
            chosen_options: One of the options, or several if the request permits it.
            map_index: Index of an instance of a mapped task, if `question` is an ID.
            iteration: Iteration of the loop around the task, if `question` is an ID.
            params_input: JSON value by field of the form.
            asked_at: `asked_at` of the request, if `question` is an ID: the answer is refused if the task has asked
                again since.

        Raises:
            Refused: The request is not open any more (`Conflict`), the caller may not answer it, or it is invalid.
            ConnectionLost: There was no response. The request may have been answered.
        """
        request = requests.answer_request(
            RunKey(dag_id, run_id),
            question,
            chosen_options,
            map_index=map_index,
            iteration=iteration,
            params_input=params_input,
            asked_at=asked_at,
        )
        return decode_receipt(self._send(request))

    def _open_run_stream(
        self, request: Request, options: WatchOptions, cursor: str | None, *, progress: bool
    ) -> RunStream:
        state = self._new_state(request, options, cursor)
        return RunStream(self, self._transport, self._tokens, state, has_display=progress)

    def _new_state(self, request: Request, options: WatchOptions | None, cursor: str | None) -> StreamState:
        credential = Credential(None, can_renew=self._tokens.can_renew)
        retries = Retries(self._origin, self._patience, time.monotonic())
        return StreamState(request, options, credential, retries, cursor)

    def _send(self, request: Request, read_timeout: float | None = None, patience: float | None = None) -> Response:
        credential = Credential(None, can_renew=self._tokens.can_renew)
        retries = Retries(self._origin, self._patience if patience is None else patience, time.monotonic())
        call = CallState(request, credential, retries)
        while True:
            try:
                if credential.needs_renewal:
                    credential.replace(self._tokens.renew(credential.token))
                elif credential.token is None:
                    credential.token = self._tokens.get()
                response = self._transport.send(call.request, credential.token, read_timeout or self._timeout)
                if call.accept(response):
                    return response
            except ConnectionLost as lost:
                call.record_loss(lost)
            time.sleep(call.next_wait(time.monotonic()))
