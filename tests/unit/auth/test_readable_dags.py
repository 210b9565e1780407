from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone

import pytest

from stream_server.auth import readable_dags as readable
from stream_server.auth.readable_dags import MAX_DIRECT_REQUESTS, OUTPUT_OF_ALL_DAGS, ReadableDags
from stream_server.domain.transition import Transition, TransitionKind
from stream_server.errors import AirflowRefused, PermissionUnknown
from stream_server.hub.filters import Filter, Resource
from stream_server.hub.firehose import Firehose
from stream_server.hub.subscription import Subscription
from stream_server.protocol.cursor import JournalPosition

RUNS, OTHER_RUNS, OUTPUT = Resource("mine"), Resource("yours"), Resource("mine", output=True)


def runs_of(*dag_ids: str) -> set[Resource]:
    return {Resource(dag_id) for dag_id in dag_ids}


def output_of(*dag_ids: str) -> set[Resource]:
    return {Resource(dag_id, output=True) for dag_id in dag_ids}


class AirflowDouble:
    def __init__(self) -> None:
        self.now = 100.0
        self.allowed = {"mine"}
        self.requests: list[Resource] = []
        self.refuses_output = False
        """Whether Airflow refuses the output of all DAGs and of each."""

        self.refuses_output_of_all = False
        """Whether Airflow refuses the output of all DAGs, but not that of single ones."""

        self.error: Exception | None = None
        """Raised by every request about a DAG."""

        self.listed = 0
        self.list_error: Exception | None = None
        self.pauses: list[float] = []
        self.dags = self.readable_dags(self.sleep)

    def readable_dags(self, sleep: Callable[[float], Awaitable[None]]) -> ReadableDags:
        return ReadableDags(self.check, self.list_dags, good_for=30, max_wait=330, clock=lambda: self.now, sleep=sleep)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def list_dags(self) -> set[str]:
        self.listed += 1
        await asyncio.sleep(0)
        if self.list_error is not None:
            raise self.list_error
        return self.allowed

    async def check(self, resource: Resource) -> bool:
        self.requests.append(resource)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if resource == OUTPUT_OF_ALL_DAGS:
            return not self.refuses_output and not self.refuses_output_of_all
        return resource.dag_id in self.allowed and not (resource.output and self.refuses_output)


@pytest.fixture
def airflow() -> AirflowDouble:
    return AirflowDouble()


async def settled() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def test_an_unknown_resource_is_requested_once(airflow: AirflowDouble) -> None:
    assert airflow.dags.may_read(RUNS) is None
    called: list[str] = []
    airflow.dags.request_decision({RUNS, OTHER_RUNS}, lambda: called.append("first"))
    airflow.dags.request_decision({RUNS}, lambda: called.append("second"))
    await settled()
    assert sorted(airflow.requests) == [RUNS, OTHER_RUNS]
    assert sorted(called) == ["first", "second"]
    assert (airflow.dags.may_read(RUNS), airflow.dags.may_read(OTHER_RUNS)) == (True, False)


async def test_an_old_answer_is_renewed_when_it_is_used(airflow: AirflowDouble) -> None:
    assert await airflow.dags.filter_readable({RUNS}) == {RUNS}
    airflow.allowed.clear()
    airflow.now += 31
    # The old answer is used until the new one arrives.
    assert airflow.dags.may_read(RUNS) is True
    await settled()
    assert airflow.dags.may_read(RUNS) is False


async def test_each_dag_is_requested_directly_within_a_minute(airflow: AirflowDouble) -> None:
    airflow.allowed = {f"dag{number}" for number in range(MAX_DIRECT_REQUESTS)}
    dags = runs_of(*airflow.allowed)
    assert await airflow.dags.filter_readable(dags) == dags
    for renewal in (2, 3, 4):
        airflow.now += 31
        for resource in dags:
            assert airflow.dags.may_read(resource)
        await settled()
        assert (len(airflow.requests), airflow.listed) == (renewal * MAX_DIRECT_REQUESTS, 0)


async def test_beyond_the_quota_requests_take_turns_and_a_list_renews_the_rest(airflow: AirflowDouble) -> None:
    airflow.allowed = {f"dag{number}" for number in range(3 * MAX_DIRECT_REQUESTS)}
    dags = runs_of(*airflow.allowed)
    assert await airflow.dags.filter_readable(dags) == dags
    for renewal in range(1, 10):
        airflow.now += 31
        airflow.requests.clear()
        for resource in dags:
            assert airflow.dags.may_read(resource)
        await settled()
        assert airflow.listed == renewal
        assert len(airflow.requests) <= MAX_DIRECT_REQUESTS
    assert await airflow.dags.filter_readable(dags) == dags
    airflow.allowed.clear()
    airflow.now += 31
    assert all(airflow.dags.may_read(resource) for resource in dags)
    await settled()
    # DAGs that the list no longer has are requested directly at once.
    assert not any(airflow.dags.may_read(resource) for resource in dags)


async def test_each_answer_is_requested_directly_in_turn(airflow: AirflowDouble) -> None:
    airflow.allowed = {f"dag{number}" for number in range(3 * MAX_DIRECT_REQUESTS)}
    dags = runs_of(*airflow.allowed)
    await airflow.dags.filter_readable(dags)
    airflow.requests.clear()
    for _ in range(3):
        airflow.now += 31
        for resource in dags:
            airflow.dags.may_read(resource)
        await settled()
    assert set(airflow.requests) == dags


async def test_an_answer_without_a_turn_is_requested_after_its_longest_renewal(airflow: AirflowDouble) -> None:
    await airflow.dags.filter_readable({RUNS})
    airflow.requests.clear()
    airflow.now += 301
    others = {f"dag{number}" for number in range(MAX_DIRECT_REQUESTS)}
    airflow.allowed |= others
    await airflow.dags.filter_readable(runs_of(*others))
    airflow.now += 61
    assert await airflow.dags.filter_readable({*runs_of(*others), RUNS}) == {*runs_of(*others), RUNS}
    assert RUNS in airflow.requests


async def test_output_is_a_resource_of_its_own(airflow: AirflowDouble) -> None:
    airflow.refuses_output = True
    assert await airflow.dags.filter_readable({RUNS, OUTPUT}) == {RUNS}
    airflow.refuses_output = False
    airflow.now += 61
    assert await airflow.dags.filter_readable({RUNS, OUTPUT}) == {RUNS, OUTPUT}
    assert sorted(airflow.requests) == [RUNS, RUNS, OUTPUT, OUTPUT]


async def test_a_lost_permission_for_output_is_detected_for_many_dags(airflow: AirflowDouble) -> None:
    airflow.allowed = {f"dag{number}" for number in range(3 * MAX_DIRECT_REQUESTS)}
    output = output_of(*airflow.allowed)
    assert await airflow.dags.filter_readable(output) == output
    airflow.now += 31
    assert all(airflow.dags.may_read(resource) for resource in output)
    await settled()
    assert airflow.listed == 1
    assert len(airflow.requests) <= 4 * MAX_DIRECT_REQUESTS + 1
    airflow.refuses_output = True
    airflow.now += 31
    assert all(airflow.dags.may_read(resource) for resource in output)
    await settled()
    assert not any(airflow.dags.may_read(resource) for resource in output)


async def test_output_is_requested_for_each_dag_if_not_all_may_be_read(airflow: AirflowDouble) -> None:
    airflow.allowed = {f"dag{number}" for number in range(3 * MAX_DIRECT_REQUESTS)}
    airflow.refuses_output_of_all = True
    output = output_of(*airflow.allowed)
    await airflow.dags.filter_readable(output)
    for _ in range(3):
        airflow.now += 31
        airflow.requests.clear()
        assert all(airflow.dags.may_read(resource) for resource in output)
        await settled()
        assert output <= set(airflow.requests)
    # A list would not help, and is not requested again.
    assert airflow.listed == 1


async def test_refused_output_costs_no_more_requests_than_granted_output(airflow: AirflowDouble) -> None:
    airflow.allowed = {f"dag{number}" for number in range(3 * MAX_DIRECT_REQUESTS)}
    airflow.refuses_output = True
    dags, output = runs_of(*airflow.allowed), output_of(*airflow.allowed)
    assert await airflow.dags.filter_readable(dags | output) == dags
    airflow.now += 31
    airflow.requests.clear()
    for resource in dags | output:
        airflow.dags.may_read(resource)
    await settled()
    assert len(airflow.requests) <= MAX_DIRECT_REQUESTS + 1


async def test_without_a_list_each_dag_is_requested_directly(airflow: AirflowDouble) -> None:
    airflow.list_error = AirflowRefused("Forbidden", 403)
    await airflow.dags.filter_readable({RUNS})
    airflow.now += 65
    assert await airflow.dags.filter_readable({RUNS}) == {RUNS}
    assert airflow.requests == [RUNS, RUNS]


async def test_an_expired_answer_is_not_used(airflow: AirflowDouble) -> None:
    await airflow.dags.filter_readable({RUNS})
    airflow.now += 61
    assert airflow.dags.may_read(RUNS) is None


ERRORS = [PermissionUnknown("down"), AirflowRefused("Bad request", 400), TypeError("null"), RecursionError()]


class Pauses:
    """Pauses that the test ends one by one."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self._ends = asyncio.Semaphore(0)

    async def sleep(self, _seconds: float) -> None:
        self.started.set()
        await self._ends.acquire()

    def end_one(self) -> None:
        self.started.clear()
        self._ends.release()


def are_growing(pauses: list[float]) -> bool:
    """Whether pauses double from the first to the longest, except for the jitter."""
    first, longest = readable.BACKOFF_SECONDS
    means = [min(first * 2**number, longest) for number in range(len(pauses))]
    return all(0.5 * mean <= pause <= 1.5 * mean for pause, mean in zip(pauses, means, strict=True))


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_a_look_up_that_fails_is_repeated_after_a_pause_and_on_request_only(
    airflow: AirflowDouble, error: Exception
) -> None:
    airflow.error = error
    for number in range(1, 8):
        called = asyncio.Event()
        airflow.dags.request_decision({RUNS}, called.set)
        await asyncio.wait_for(called.wait(), 5)
        await settled()
        assert (airflow.dags.may_read(RUNS), len(airflow.requests), len(airflow.pauses)) == (None, number, number)
    assert are_growing(airflow.pauses)
    airflow.error = None
    assert await airflow.dags.filter_readable({RUNS}) == {RUNS}


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_a_resuming_client_waits_for_few_look_ups(airflow: AirflowDouble, error: Exception) -> None:
    airflow.error = error
    with pytest.raises(PermissionUnknown):
        await airflow.dags.filter_readable({RUNS})
    # With the shortest pauses, 0.5, 1, 2, 4 and 5 s, the fifth one ends after the deadline.
    assert len(airflow.requests) <= 5
    assert len(airflow.pauses) == len(airflow.requests)
    assert are_growing(airflow.pauses)


async def test_a_waiting_stream_makes_no_look_up_during_the_pause(airflow: AirflowDouble) -> None:
    airflow.error = TypeError("null")
    pauses = Pauses()
    dags = airflow.readable_dags(pauses.sleep)
    firehose, subscription = Firehose(), Subscription(10**6)
    firehose.add(Filter(), subscription, JournalPosition("e", 1, 1), 0.0, dags)
    row = Transition(1, 1, datetime(2026, 1, 1, tzinfo=timezone.utc), TransitionKind.RUN, "mine", "r", state="queued")
    for seconds in range(100):
        firehose.dispatch([row], JournalPosition("e", 2, 2), float(seconds))
        await settled()
    assert len(airflow.requests) == 1
    pauses.end_one()
    await asyncio.wait_for(pauses.started.wait(), 5)
    assert len(airflow.requests) == 2
    airflow.error = None
    pauses.end_one()
    assert await asyncio.wait_for(dags.filter_readable({RUNS}), 5) == {RUNS}
    await settled()
    assert [wire.type for wire in subscription.take()] == ["ping"] + ["run"] * 100
    assert len(airflow.requests) == 3


async def test_a_success_resets_the_pause(airflow: AirflowDouble) -> None:
    airflow.error = TypeError("null")
    with pytest.raises(PermissionUnknown):
        await airflow.dags.filter_readable({RUNS})
    airflow.error = None
    assert await airflow.dags.filter_readable({RUNS}) == {RUNS}
    airflow.error = TypeError("null")
    airflow.now += 61
    airflow.pauses.clear()
    with pytest.raises(PermissionUnknown):
        await airflow.dags.filter_readable({RUNS})
    assert are_growing(airflow.pauses)


async def test_a_failed_look_up_delays_no_other(airflow: AirflowDouble) -> None:
    airflow.error = TypeError("null")
    pauses = Pauses()
    dags = airflow.readable_dags(pauses.sleep)
    dags.request_decision({OTHER_RUNS}, lambda: None)
    await asyncio.wait_for(pauses.started.wait(), 5)
    airflow.error = None
    assert await asyncio.wait_for(dags.filter_readable({RUNS}), 5) == {RUNS}
    await dags.close()


@pytest.mark.parametrize("error", [PermissionUnknown("down"), TypeError("null")], ids=repr)
async def test_a_list_that_fails_is_requested_once_for_all_that_need_it(
    airflow: AirflowDouble, error: Exception
) -> None:
    airflow.allowed = {f"dag{number}" for number in range(3 * MAX_DIRECT_REQUESTS)}
    dags = runs_of(*airflow.allowed)
    await airflow.dags.filter_readable(dags)
    airflow.now += 31
    airflow.requests.clear()
    airflow.list_error = error
    for number in range(1, 4):
        assert all(airflow.dags.may_read(resource) for resource in dags)
        await settled()
        assert (airflow.listed, len(airflow.pauses)) == (number, number)
    assert are_growing(airflow.pauses)
    assert len(airflow.requests) <= MAX_DIRECT_REQUESTS
    airflow.list_error = None
    assert all(airflow.dags.may_read(resource) for resource in dags)
    await settled()
    assert airflow.listed == 4


async def test_only_the_first_unexpected_exception_in_a_row_is_logged(
    airflow: AirflowDouble, caplog: pytest.LogCaptureFixture
) -> None:
    airflow.error = TypeError("null")
    with pytest.raises(PermissionUnknown):
        await airflow.dags.filter_readable({RUNS, OTHER_RUNS})
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_the_number_of_pauses_is_bounded(airflow: AirflowDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "MAX_ANSWERS", 2)
    airflow.dags = airflow.readable_dags(airflow.sleep)
    airflow.error = TypeError("null")
    for resource in (RUNS, OTHER_RUNS, OUTPUT, RUNS):
        airflow.pauses.clear()
        called = asyncio.Event()
        airflow.dags.request_decision({resource}, called.set)
        await asyncio.wait_for(called.wait(), 5)
        # The pause of the first resource was dropped.
        assert are_growing(airflow.pauses)


async def test_the_number_of_answers_is_bounded(airflow: AirflowDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "MAX_ANSWERS", 2)
    airflow.dags = airflow.readable_dags(airflow.sleep)
    for resource in (RUNS, OTHER_RUNS, OUTPUT):
        await airflow.dags.filter_readable({resource})
    assert [airflow.dags.may_read(resource) for resource in (RUNS, OTHER_RUNS, OUTPUT)] == [None, False, True]


async def test_a_resuming_client_does_not_wait_forever(airflow: AirflowDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "MAX_WAIT_SECONDS", 0)
    with pytest.raises(PermissionUnknown):
        await airflow.dags.filter_readable({RUNS})
    await airflow.dags.close()


async def test_close_cancels_all_requests(airflow: AirflowDouble) -> None:
    called: list[str] = []
    airflow.dags.request_decision({RUNS}, lambda: called.append("x"))
    await airflow.dags.close()
    await settled()
    assert called == []
