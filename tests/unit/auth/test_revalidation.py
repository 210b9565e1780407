from __future__ import annotations

import asyncio
import base64
import json

import pytest

from stream_server.auth.authorizer import ACCESS_WITHOUT_VALUES, FULL_ACCESS, Access, Caller, StreamScope
from stream_server.auth.revalidation import LATER_DELAY, MAX_CONCURRENT_CHECKS, RETRY_SECONDS, Revalidator
from stream_server.errors import AirflowRefused, PermissionUnknown
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode

INTERVAL, GRACE = 30.0, 300.0
SCOPE = StreamScope("chat", "r1")


class World:
    """Answers of Airflow, and the time."""

    def __init__(self) -> None:
        self.asked: list[tuple[Caller, StreamScope]] = []
        self.answer: Access | Exception = FULL_ACCESS
        self.silence = asyncio.Event()
        """Cleared while Airflow does not answer."""

        self.silence.set()
        self.under_way = self.most = 0
        self.now, self.wall = 1000.0, 1_700_000_000.0
        self.guards = Revalidator(
            self.ask,
            lambda caller: caller.headers.get("authorization", "").encode(),
            interval=INTERVAL,
            grace=GRACE,
            clock=lambda: self.now,
            wall_clock=lambda: self.wall,
        )

    async def ask(self, caller: Caller, scope: StreamScope) -> Access:
        self.asked.append((caller, scope))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.silence.wait()
        self.under_way -= 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def passes(self, seconds: float) -> None:
        """Let time pass as the loop of the guards sees it."""
        end = self.now + seconds
        while self.now < end:
            step = min(2.0, end - self.now)
            self.now += step
            self.wall += step
            self.guards.check_groups(self.guards.groups)
            for _ in range(4):
                await asyncio.sleep(0)

    def caller(self, name: str = "ada", lifetime: float | None = None) -> Caller:
        claims = {} if lifetime is None else {"exp": self.wall + lifetime}
        payload = base64.urlsafe_b64encode(json.dumps({"sub": name, **claims}).encode()).decode().rstrip("=")
        return Caller.from_token(f"e30.{payload}.sig")


@pytest.fixture
def world() -> World:
    return World()


def subscription() -> Subscription:
    return Subscription(10**6)


def code(subscription: Subscription) -> CloseCode | None:
    return None if subscription.closed is None else CloseCode(subscription.closed.code)


async def test_all_streams_of_a_credential_and_a_dag_share_a_check(world: World) -> None:
    streams = [subscription() for _ in range(1000)]
    for number, stream in enumerate(streams):
        world.guards.register(world.caller(), StreamScope("chat", f"r{number % 10}"), FULL_ACCESS, stream, None)
    await world.passes(60)
    assert 2 <= len(world.asked) <= 3
    assert all(code(stream) is None for stream in streams)


async def test_another_credential_or_scope_has_another_check(world: World) -> None:
    for caller, scope in (
        (world.caller(), SCOPE),
        (world.caller("bob"), SCOPE),
        (world.caller(), StreamScope("other", "r1")),
        (world.caller(), StreamScope("chat")),
        (world.caller(), StreamScope()),
    ):
        world.guards.register(
            caller, scope, FULL_ACCESS if scope.run_id else ACCESS_WITHOUT_VALUES, subscription(), None
        )
    assert len(world.guards) == 5


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (AirflowRefused("Forbidden", 403), CloseCode.FORBIDDEN),
        (AirflowRefused("Token Expired", 401), CloseCode.UNAUTHENTICATED),
        (AirflowRefused("Invalid JWT token", 403), CloseCode.UNAUTHENTICATED),
        (ACCESS_WITHOUT_VALUES, CloseCode.ACCESS_CHANGED),
    ],
)
async def test_a_stream_ends_within_a_minute_after_its_permission(
    world: World, answer: Access | Exception, expected: CloseCode
) -> None:
    streams = [subscription(), subscription()]
    for stream in streams:
        world.guards.register(world.caller(), SCOPE, FULL_ACCESS, stream, None)
    await world.passes(INTERVAL)
    world.answer = answer
    await world.passes(INTERVAL + 4)
    assert [code(stream) for stream in streams] == [expected] * 2


async def test_the_first_check_is_early(world: World) -> None:
    world.guards.register(world.caller(), SCOPE, FULL_ACCESS, subscription(), None)
    await world.passes(INTERVAL / 2 + 2)
    assert len(world.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [PermissionUnknown("down"), AirflowRefused("There is no such DAG", 404), TypeError("null"), RecursionError()],
    ids=repr,
)
async def test_without_an_answer_streams_continue_for_the_grace(world: World, answer: Exception) -> None:
    stream = subscription()
    world.guards.register(world.caller(), SCOPE, FULL_ACCESS, stream, None)
    world.answer = answer
    await world.passes(GRACE)
    assert code(stream) is None
    await world.passes(INTERVAL + 4)
    assert code(stream) is CloseCode.UNAVAILABLE
    assert stream.closed is not None
    assert stream.closed.reconnect
    assert len(world.asked) <= (GRACE + INTERVAL + 4) / (RETRY_SECONDS * LATER_DELAY[0])


async def test_only_the_first_unexpected_exception_in_a_row_is_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.guards.register(world.caller(), SCOPE, FULL_ACCESS, subscription(), None)
    world.answer = TypeError("null")
    await world.passes(INTERVAL + 60)
    assert len(world.asked) > 2
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_an_answer_ends_the_grace(world: World) -> None:
    stream = subscription()
    world.guards.register(world.caller(), SCOPE, FULL_ACCESS, stream, None)
    world.answer = PermissionUnknown("down")
    await world.passes(GRACE - 10)
    world.answer = FULL_ACCESS
    await world.passes(GRACE - 10)
    world.answer = PermissionUnknown("down")
    await world.passes(GRACE - 10)
    assert code(stream) is None


async def test_a_client_is_warned_once_before_its_token_expires(world: World) -> None:
    caller, told = world.caller(lifetime=600), subscription()
    world.guards.register(caller, SCOPE, FULL_ACCESS, told, None)
    await world.passes(538)
    assert code(told) is None
    await world.passes(6)
    assert code(told) is CloseCode.AUTH_EXPIRING
    late = subscription()
    world.guards.register(caller, SCOPE, FULL_ACCESS, late, None)
    await world.passes(50)
    assert code(late) is None


async def test_a_client_that_can_send_a_token_is_warned_and_continues(world: World) -> None:
    stream, warned = subscription(), list[float]()
    guard = world.guards.register(
        world.caller(lifetime=120),
        SCOPE,
        FULL_ACCESS,
        stream,
        lambda _, expires_at: warned.append(expires_at.timestamp()),
    )
    expires_at = world.wall + 120
    await world.passes(64)
    assert warned == [expires_at]
    fresh = world.caller(lifetime=3600)
    await guard.revalidate(fresh)
    assert len(world.guards) == 1
    await world.passes(INTERVAL)
    assert world.asked[-1][0] == fresh
    assert (code(stream), len(warned)) == (None, 1)


async def test_another_token_that_is_refused_changes_nothing(world: World) -> None:
    stream = subscription()
    guard = world.guards.register(world.caller(), SCOPE, FULL_ACCESS, stream, None)
    world.answer = AirflowRefused("Forbidden", 403)
    with pytest.raises(AirflowRefused):
        await guard.revalidate(world.caller("bob"))
    world.answer = FULL_ACCESS
    await world.passes(INTERVAL)
    assert world.asked[-1][0] == world.caller()


async def test_a_token_with_other_access_makes_the_client_reconnect(world: World) -> None:
    stream = subscription()
    guard = world.guards.register(world.caller(), SCOPE, FULL_ACCESS, stream, None)
    world.answer = ACCESS_WITHOUT_VALUES
    await guard.revalidate(world.caller("bob"))
    assert code(stream) is CloseCode.ACCESS_CHANGED


async def test_a_stream_that_has_ended_is_forgotten(world: World) -> None:
    guards = [world.guards.register(world.caller(), SCOPE, FULL_ACCESS, subscription(), None) for _ in range(2)]
    for guard, left in zip(guards, (1, 0), strict=True):
        guard.release()
        assert len(world.guards) == left
    await world.passes(2 * INTERVAL)
    assert world.asked == []


async def test_streams_with_other_access_are_checked_separately(world: World) -> None:
    first, second = subscription(), subscription()
    world.guards.register(world.caller(), SCOPE, FULL_ACCESS, first, None)
    world.answer = ACCESS_WITHOUT_VALUES
    world.guards.register(world.caller(), SCOPE, ACCESS_WITHOUT_VALUES, second, None)
    await world.passes(2 * INTERVAL)
    assert (code(first), code(second)) == (CloseCode.ACCESS_CHANGED, None)


async def test_concurrent_checks_are_bounded(world: World) -> None:
    streams = [subscription() for _ in range(200)]
    for number, stream in enumerate(streams):
        world.guards.register(world.caller(f"user{number}"), SCOPE, FULL_ACCESS, stream, None)
    world.silence.clear()
    await world.passes(INTERVAL)
    assert (len(world.asked), world.most) == (MAX_CONCURRENT_CHECKS, MAX_CONCURRENT_CHECKS)
    world.silence.set()
    for _ in range(1000):
        await asyncio.sleep(0)
    assert (len(world.asked), world.most) == (200, MAX_CONCURRENT_CHECKS)
    assert all(code(stream) is None for stream in streams)


async def test_a_group_without_streams_is_not_checked(world: World) -> None:
    guards = [
        world.guards.register(world.caller(f"user{n}"), SCOPE, FULL_ACCESS, subscription(), None)
        for n in range(MAX_CONCURRENT_CHECKS + 1)
    ]
    world.silence.clear()
    await world.passes(INTERVAL)
    for guard in guards:
        guard.release()
    world.silence.set()
    await world.passes(INTERVAL)
    assert len(world.asked) == MAX_CONCURRENT_CHECKS
    await world.guards.close()
