"""Human input in streams of many runs: sent only if it is named, with a permission of its own."""

from __future__ import annotations

import json

import pytest

from stream_server.domain.replay import Gap
from stream_server.domain.transition import Transition, TransitionKind
from stream_server.hub.filters import Filter, Resource
from stream_server.hub.firehose import Firehose, replay, required_resources
from stream_server.hub.subscription import Subscription
from stream_server.protocol.cursor import ResumeToken
from support.firehose_rows import cursor, sent_types, transition


def request_row(seq: int) -> Transition:
    request = {
        "dag_id": "a",
        "run_id": "r",
        "task_id": "t",
        "map_index": -1,
        "try_number": 1,
        "asked_at": "2026-11-22T14:21:10Z",
        "bytes": 9,
        "content": {"subject": "secret", "options": ["yes"]},
    }
    row = transition(seq)._replace(kind=TransitionKind.INPUT, try_number=1, state="open")
    return row._replace(body=json.dumps(request))


INPUTS = Filter(types=frozenset({"input", "task"}))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(), ["task"]),
        (Filter(types=frozenset({"task"})), ["task"]),
        (INPUTS, ["input", "task"]),
        (INPUTS._replace(states=frozenset({str(transition(2).state)})), ["task"]),
        (INPUTS._replace(task_ids=frozenset({"other"})), []),
    ],
)
def test_human_input_is_sent_only_if_it_is_named(wanted: Filter, expected: list[str]) -> None:
    firehose, subscription = Firehose(), Subscription(10**6)
    firehose.add(wanted, subscription, cursor(1), 0.0)
    subscription.take()
    history = [request_row(1), transition(2)]
    firehose.dispatch(history, cursor(3), 0.0)
    assert [kind for kind in sent_types(subscription) if kind != "ping"] == expected
    replayed = replay(wanted, Gap(ResumeToken(cursor(1)), cursor(5), history))
    assert [wire.type for wire in replayed] == ["resumed", *expected]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ({Resource("a")}, ["withheld", "task"]),
        ({Resource("a"), Resource("a", output=True)}, ["withheld", "task"]),
        ({Resource("a"), Resource("a", inputs=True)}, ["secret", "task"]),
        (set(), []),
    ],
)
def test_human_input_has_a_permission_of_its_own(allowed: set[Resource], expected: list[str]) -> None:
    history = [request_row(1), transition(2)]
    assert required_resources(INPUTS, history) == {Resource("a"), Resource("a", inputs=True)}
    assert required_resources(Filter(), history[:1]) == set()
    wires = replay(INPUTS, Gap(ResumeToken(cursor(1)), cursor(5), history), allowed)[1:]
    sent = [json.loads(wire.text) for wire in wires]
    assert [one.get("subject", "withheld" if one.get("withheld") else one["type"]) for one in sent] == expected
    hidden = replay(INPUTS._replace(inputs_redacted=True), Gap(ResumeToken(cursor(1)), cursor(5), history))
    assert "secret" not in "".join(wire.text for wire in hidden)
