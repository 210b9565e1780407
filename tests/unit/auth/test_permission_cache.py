from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from stream_server.auth.authorizer import Caller
from stream_server.auth.permission_cache import CachedPermission, PermissionCache
from stream_server.errors import AirflowRefused, PermissionUnknown

ADA, BOB = Caller.from_token("ada"), Caller.from_token("bob")
SUBJECT = ("runs", "chat")


class Airflow:
    """Answers questions, and counts them."""

    def __init__(self) -> None:
        self.asked = 0
        self.at_once = self.most_at_once = 0
        self.permit = CachedPermission(200)
        self.error: Exception | None = None
        self.answering = asyncio.Event()
        self.answering.set()

    async def ask(self) -> CachedPermission:
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.answering.wait()
        finally:
            self.at_once -= 1
        if self.error is not None:
            raise self.error
        return self.permit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def airflow() -> Airflow:
    return Airflow()


@pytest.fixture
def permits(clock: Callable[[], float]) -> PermissionCache:
    return PermissionCache(good_for=30, refused_for=10, limit=3, at_once=2, clock=clock)


@pytest.mark.parametrize(("permit", "seconds"), [(CachedPermission(200), 30), (CachedPermission(403, "Forbidden"), 10)])
async def test_a_permission_is_valid_for_longer_than_a_refusal(
    permits: PermissionCache, airflow: Airflow, clock: Clock, permit: CachedPermission, seconds: float
) -> None:
    airflow.permit = permit
    for passed, asked in ((0, 1), (seconds - 0.1, 1), (0.1, 2)):
        clock.now += passed
        assert await permits.get(ADA, SUBJECT, airflow.ask) == permit
        assert airflow.asked == asked


async def test_a_permission_is_for_one_caller_and_one_subject(permits: PermissionCache, airflow: Airflow) -> None:
    cookies = Caller({"cookie": "ada"})
    for caller, subject in ((ADA, SUBJECT), (BOB, SUBJECT), (cookies, SUBJECT), (ADA, ("runs", "other"))):
        await permits.get(caller, subject, airflow.ask)
    assert airflow.asked == 4


async def test_a_404_is_not_kept(permits: PermissionCache, airflow: Airflow) -> None:
    airflow.permit = CachedPermission(404)
    for _ in range(2):
        await permits.get(ADA, SUBJECT, airflow.ask)
    assert airflow.asked == 2


async def test_concurrent_calls_share_a_request(permits: PermissionCache, airflow: Airflow) -> None:
    airflow.answering.clear()
    asking = [asyncio.create_task(permits.get(ADA, SUBJECT, airflow.ask)) for _ in range(100)]
    await asyncio.sleep(0)
    asking[0].cancel()
    airflow.answering.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [CachedPermission(200)] * 99
    assert airflow.asked == 1


async def test_concurrent_requests_are_bounded(permits: PermissionCache, airflow: Airflow) -> None:
    airflow.answering.clear()
    asking = [asyncio.create_task(permits.get(ADA, ("runs", str(number)), airflow.ask)) for number in range(20)]
    for _ in range(10):
        await asyncio.sleep(0)
    airflow.answering.set()
    await asyncio.gather(*asking)
    assert airflow.most_at_once == 2


async def test_the_least_recently_used_permissions_are_dropped_first(
    permits: PermissionCache, airflow: Airflow
) -> None:
    for dag_id in ("a", "b", "c", "a", "d"):
        await permits.get(ADA, ("runs", dag_id), airflow.ask)
    assert (len(permits), airflow.asked) == (3, 4)
    await permits.get(ADA, ("runs", "a"), airflow.ask)
    assert airflow.asked == 4
    await permits.get(ADA, ("runs", "b"), airflow.ask)
    assert airflow.asked == 5


async def test_an_error_is_raised_in_all_waiting_calls_and_not_kept(permits: PermissionCache, airflow: Airflow) -> None:
    airflow.error = PermissionUnknown("Airflow is down")
    answers = await asyncio.gather(*(permits.get(ADA, SUBJECT, airflow.ask) for _ in range(3)), return_exceptions=True)
    assert answers == [airflow.error] * 3
    airflow.error = None
    assert (await permits.get(ADA, SUBJECT, airflow.ask)).is_granted
    assert airflow.asked == 2


async def test_a_request_without_the_cache_updates_it(permits: PermissionCache, airflow: Airflow) -> None:
    await permits.get(ADA, SUBJECT, airflow.ask)
    airflow.permit = CachedPermission(403)
    await permits.get(ADA, SUBJECT, airflow.ask, anew=True)
    assert (await permits.get(ADA, SUBJECT, airflow.ask)).status == 403
    assert airflow.asked == 2


async def test_the_cache_holds_no_credential(permits: PermissionCache, airflow: Airflow) -> None:
    await permits.get(ADA, SUBJECT, airflow.ask)
    assert b"ada" not in permits.credential_digest(ADA)
    assert "ada" not in repr(vars(permits))


def test_the_digest_of_a_caller_differs_between_processes(permits: PermissionCache) -> None:
    other = PermissionCache(good_for=1, refused_for=1, limit=1, at_once=1)
    assert permits.credential_digest(ADA) == permits.credential_digest(Caller.from_token("ada"))
    assert permits.credential_digest(ADA) != other.credential_digest(ADA)


def test_a_refusal_is_raised_as_airflow_gave_it() -> None:
    CachedPermission(200).raise_if_refused()
    with pytest.raises(AirflowRefused, match="Not authenticated") as refused:
        CachedPermission(401, "Not authenticated", "Bearer").raise_if_refused()
    assert (refused.value.status, refused.value.challenge) == (401, "Bearer")
