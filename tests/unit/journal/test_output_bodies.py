from __future__ import annotations

from stream_server.domain.transition import OUTPUT_KEY, Transition, TransitionKind
from stream_server.journal.output_bodies import add_output_bodies
from support.builders import KEY, at

TASK = Transition(1, 101, at(1), TransitionKind.TASK, *KEY, "answer", -1, 1, "running", "queued")


def output(seq: int, task_id: str, body: str | None = None) -> Transition:
    row = Transition(seq, 101, at(seq), TransitionKind.XCOM, *KEY, task_id, -1)
    return row._replace(xcom_key=OUTPUT_KEY, body=body)


class Bodies:
    """The output of all rows but one, and the tasks whose output is wanted after each read."""

    def __init__(self, *wanted: set[str]) -> None:
        self.reads: list[list[int]] = []
        self._wanted = wanted

    def is_wanted(self, transition: Transition) -> bool:
        return transition.task_id in self._wanted[min(len(self.reads), len(self._wanted) - 1)]

    async def read(self, rows: list[int]) -> dict[int, str | None]:
        self.reads.append(rows)
        return {row: f"body {row}" for row in rows if row != 9}


async def bodies_of(source: Bodies, *transitions: Transition) -> list[str | None]:
    return [one.body for one in await add_output_bodies(transitions, source.is_wanted, source.read)]


async def test_output_is_read_at_once_if_it_is_wanted() -> None:
    source = Bodies({"ask", "answer"})
    assert await bodies_of(source, TASK, output(2, "ask"), output(3, "answer"), output(4, "clean_up")) == [
        *(None, "body 2", "body 3", None)
    ]
    assert source.reads == [[2, 3]]


async def test_output_that_becomes_wanted_during_a_read_is_read_too() -> None:
    source = Bodies({"ask"}, {"ask", "answer"}, {"ask", "answer", "clean_up"})
    assert await bodies_of(source, output(2, "ask"), output(3, "answer"), output(4, "clean_up")) == [
        *("body 2", "body 3", "body 4")
    ]
    assert source.reads == [[2], [3], [4]]


async def test_output_that_was_sent_or_is_gone_is_not_read_again() -> None:
    source = Bodies({"answer"})
    assert await bodies_of(source, output(2, "answer", "known"), output(9, "answer")) == ["known", None]
    assert source.reads == [[9]]
