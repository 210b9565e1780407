"""`Run`, a handle of a run for `Client`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stream_server.client.frames import Input
from stream_server.client.outcomes import Outcome
from stream_server.client.requests import Confirm, Until
from stream_server.client.sync_stream import RunStream
from stream_server.protocol.bodies import InputReceipt

if TYPE_CHECKING:
    from stream_server.client.sync_client import Client


class Run:
    """A handle of a run. Its methods are those of the client, without the IDs of the run."""

    def __init__(self, client: Client, dag_id: str, run_id: str) -> None:
        self._client = client
        self.dag_id, self.run_id = dag_id, run_id

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dag_id={self.dag_id!r}, run_id={self.run_id!r})"

    def stream(
        self,
        *,
        results: Sequence[str] = (),
        until: Until = "result",
        confirm: Confirm = "push",
        cursor: str | None = None,
        progress: bool = False,
    ) -> RunStream:
        """Return the stream of the run, as `Client.stream` does."""
        return self._client.stream(
            self.dag_id,
            self.run_id,
            results=results,
            until=until,
            confirm=confirm,
            cursor=cursor,
            progress=progress,
        )

    def wait(
        self,
        *,
        results: Sequence[str] = (),
        until: Until = "result",
        confirm: Confirm = "push",
        timeout: float | None = None,
    ) -> Outcome:
        """Wait for the outcome, and return it, as `Client.wait` does."""
        return self._client.wait(
            self.dag_id, self.run_id, results=results, until=until, confirm=confirm, timeout=timeout
        )

    def result(
        self,
        *,
        results: Sequence[str] = (),
        until: Until = "result",
        confirm: Confirm = "push",
        timeout: float | None = None,
    ) -> Any:
        """Wait for the result, and return its value, as `Client.result` does."""
        return self._client.result(
            self.dag_id, self.run_id, results=results, until=until, confirm=confirm, timeout=timeout
        )

    def watch(self) -> Outcome:
        """Show the run until its outcome: in a table in a notebook, else in a line. Return the outcome."""
        return self.stream().watch()

    def cancel(self) -> str:
        """Set the run to failed, and return its state, as `Client.cancel` does."""
        return self._client.cancel(self.dag_id, self.run_id)

    def answer(
        self,
        question: Input | str,
        chosen_options: str | Sequence[str],
        *,
        map_index: int = -1,
        iteration: int | None = None,
        params_input: Mapping[str, Any] | None = None,
        asked_at: str | None = None,
    ) -> InputReceipt:
        """Answer a request for human input, as `Client.answer` does."""
        return self._client.answer(
            self.dag_id,
            self.run_id,
            question,
            chosen_options,
            map_index=map_index,
            iteration=iteration,
            params_input=params_input,
            asked_at=asked_at,
        )
