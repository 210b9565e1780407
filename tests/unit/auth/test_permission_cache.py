from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from stream_server.auth import permission_cache
from stream_server.auth.authorizer import Caller
from stream_server.auth.permission_cache import CachedPermission, PermissionCache
from stream_server.errors import AirflowRefused, PermissionUnknown
from support.waiting import eventually_async

ADA, BOB = Caller.from_token("token-of-ada"), Caller.from_token("bob")
SUBJECT = ("runs", "chat")


class Airflow:
    """Answers permission requests, and counts them."""

    def __init__(self) -> None:
        self.requests = 0
        self.concurrent = self.most_concurrent = 0
        self.permission = CachedPermission(200)
        self.error: Exception | None = None
        self.responds = asyncio.Event()
        self.responds.set()

    async def fetch(self) -> CachedPermission:
        self.requests += 1
        self.concurrent += 1
        self.most_concurrent = max(self.most_concurrent, self.concurrent)
        try:
            await self.responds.wait()
        finally:
            self.concurrent -= 1
        if self.error is not None:
            raise self.error
        return self.permission


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
def cache(clock: Callable[[], float]) -> PermissionCache:
    return PermissionCache(good_for=30, refused_for=10, limit=3, at_once=2, clock=clock)


@pytest.mark.parametrize(
    ("permission", "seconds"), [(CachedPermission(200), 30), (CachedPermission(403, "Forbidden"), 10)]
)
async def test_a_permission_is_valid_for_longer_than_a_refusal(
    cache: PermissionCache, airflow: Airflow, clock: Clock, permission: CachedPermission, seconds: float
) -> None:
    airflow.permission = permission
    for passed, requests in ((0, 1), (seconds - 0.1, 1), (0.1, 2)):
        clock.now += passed
        assert await cache.get(ADA, SUBJECT, airflow.fetch) == permission
        assert airflow.requests == requests


async def test_a_permission_is_for_one_caller_and_one_subject(cache: PermissionCache, airflow: Airflow) -> None:
    cookies = Caller({"cookie": "ada"})
    for caller, subject in ((ADA, SUBJECT), (BOB, SUBJECT), (cookies, SUBJECT), (ADA, ("runs", "other"))):
        await cache.get(caller, subject, airflow.fetch)
    assert airflow.requests == 4


async def test_a_404_is_not_cached(cache: PermissionCache, airflow: Airflow) -> None:
    airflow.permission = CachedPermission(404)
    for _ in range(2):
        await cache.get(ADA, SUBJECT, airflow.fetch)
    assert airflow.requests == 2


async def test_concurrent_calls_share_a_request(cache: PermissionCache, airflow: Airflow) -> None:
    airflow.responds.clear()
    calls = [asyncio.create_task(cache.get(ADA, SUBJECT, airflow.fetch)) for _ in range(100)]
    await asyncio.sleep(0)
    calls[0].cancel()
    airflow.responds.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [CachedPermission(200)] * 99
    assert airflow.requests == 1


async def test_concurrent_requests_are_bounded(cache: PermissionCache, airflow: Airflow) -> None:
    airflow.responds.clear()
    calls = [asyncio.create_task(cache.get(ADA, ("runs", str(number)), airflow.fetch)) for number in range(20)]
    for _ in range(10):
        await asyncio.sleep(0)
    airflow.responds.set()
    await asyncio.gather(*calls)
    assert airflow.most_concurrent == 2


async def test_a_request_waits_for_a_bounded_time(
    cache: PermissionCache, airflow: Airflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permission_cache, "MAX_QUEUE_SECONDS", 0.05)
    airflow.responds.clear()
    calls = [asyncio.create_task(cache.get(ADA, ("runs", str(number)), airflow.fetch)) for number in range(20)]
    await eventually_async(lambda: sum(call.done() for call in calls) == 18, what="the others have waited for too long")
    airflow.responds.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[:2] == [CachedPermission(200)] * 2
    assert {type(answer) for answer in answers[2:]} == {PermissionUnknown}
    # Two places are free again.
    airflow.responds.clear()
    calls = [asyncio.create_task(cache.get(BOB, ("runs", str(number)), airflow.fetch)) for number in range(2)]
    await eventually_async(lambda: airflow.concurrent == 2, what="both requests are in progress")
    airflow.responds.set()
    await asyncio.gather(*calls)


async def test_the_queue_of_requests_is_bounded(
    cache: PermissionCache, airflow: Airflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permission_cache, "MAX_QUEUED", 5)
    airflow.responds.clear()
    calls = [asyncio.create_task(cache.get(ADA, ("runs", str(number)), airflow.fetch)) for number in range(20)]
    await eventually_async(lambda: sum(call.done() for call in calls) == 13, what="the others are refused at once")
    airflow.responds.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[:7] == [CachedPermission(200)] * 7
    assert {type(answer) for answer in answers[7:]} == {PermissionUnknown}
    assert await cache.get(ADA, ("runs", "19"), airflow.fetch) == CachedPermission(200)


async def test_the_least_recently_used_permissions_are_dropped_first(cache: PermissionCache, airflow: Airflow) -> None:
    for dag_id in ("a", "b", "c", "a", "d"):
        await cache.get(ADA, ("runs", dag_id), airflow.fetch)
    assert (len(cache), airflow.requests) == (3, 4)
    await cache.get(ADA, ("runs", "a"), airflow.fetch)
    assert airflow.requests == 4
    await cache.get(ADA, ("runs", "b"), airflow.fetch)
    assert airflow.requests == 5


async def test_an_error_is_raised_in_all_waiting_calls_and_not_cached(cache: PermissionCache, airflow: Airflow) -> None:
    airflow.error = PermissionUnknown("Airflow is down")
    answers = await asyncio.gather(*(cache.get(ADA, SUBJECT, airflow.fetch) for _ in range(3)), return_exceptions=True)
    assert answers == [airflow.error] * 3
    airflow.error = None
    assert (await cache.get(ADA, SUBJECT, airflow.fetch)).is_granted
    assert airflow.requests == 2


async def test_a_request_without_the_cache_updates_it(cache: PermissionCache, airflow: Airflow) -> None:
    await cache.get(ADA, SUBJECT, airflow.fetch)
    airflow.permission = CachedPermission(403)
    await cache.get(ADA, SUBJECT, airflow.fetch, anew=True)
    assert (await cache.get(ADA, SUBJECT, airflow.fetch)).status == 403
    assert airflow.requests == 2


async def test_the_cache_contains_no_credential(cache: PermissionCache, airflow: Airflow) -> None:
    await cache.get(ADA, SUBJECT, airflow.fetch)
    assert b"token-of-ada" not in cache.credential_digest(ADA)
    assert "token-of-ada" not in repr(vars(cache))


def test_the_digest_of_a_caller_differs_between_processes(cache: PermissionCache) -> None:
    other = PermissionCache(good_for=1, refused_for=1, limit=1, at_once=1)
    assert cache.credential_digest(ADA) == cache.credential_digest(Caller.from_token("token-of-ada"))
    assert cache.credential_digest(ADA) != other.credential_digest(ADA)


def test_a_refusal_is_raised_with_airflows_status_and_message() -> None:
    CachedPermission(200).raise_if_refused()
    with pytest.raises(AirflowRefused, match="Not authenticated") as refused:
        CachedPermission(401, "Not authenticated", "Bearer").raise_if_refused()
    assert (refused.value.status, refused.value.challenge) == (401, "Bearer")


async def test_a_permission_is_valid_from_its_request_on(
    cache: PermissionCache, airflow: Airflow, clock: Clock
) -> None:
    """It may have been revoked while the response was on its way."""

    async def fetch_slowly() -> CachedPermission:
        clock.now += 20
        return await airflow.fetch()

    await cache.get(ADA, SUBJECT, fetch_slowly)
    clock.now += 11
    await cache.get(ADA, SUBJECT, airflow.fetch)
    assert airflow.requests == 2
