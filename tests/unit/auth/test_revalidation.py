from __future__ import annotations

import asyncio
import base64
import json

import pytest

from stream_server.auth.authorizer import ACCESS_WITHOUT_VALUES, FULL_ACCESS, Access, Caller, Grant, StreamScope
from stream_server.auth.revalidation import LATER_DELAY, MAX_CONCURRENT_CHECKS, RETRY_SECONDS, Revalidator
from stream_server.errors import AirflowRefused, PermissionUnknown
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode

INTERVAL, GRACE = 30.0, 300.0
SCOPE = StreamScope("chat", "r1")


class AirflowDouble:
    """Airflow's answers to permission requests, and a clock that the test advances."""

    def __init__(self) -> None:
        self.requests: list[tuple[Caller, StreamScope]] = []
        self.response: Access | Exception = FULL_ACCESS
        self.responds = asyncio.Event()
        """Cleared while Airflow does not answer."""

        self.responds.set()
        self.concurrent = self.most_concurrent = 0
        self.now, self.wall = 1000.0, 1_700_000_000.0
        self.revalidator = Revalidator(
            self.check,
            lambda caller: caller.headers.get("authorization", "").encode(),
            interval=INTERVAL,
            grace=GRACE,
            clock=lambda: self.now,
            wall_clock=lambda: self.wall,
        )

    async def check(self, caller: Caller, scope: StreamScope) -> Access:
        self.requests.append((caller, scope))
        self.concurrent += 1
        self.most_concurrent = max(self.most_concurrent, self.concurrent)
        await self.responds.wait()
        self.concurrent -= 1
        if isinstance(self.response, Exception):
            raise self.response
        return self.response

    async def advance(self, seconds: float) -> None:
        """Advance the clocks in the steps of the revalidator's loop, and check what is due."""
        end = self.now + seconds
        while self.now < end:
            step = min(2.0, end - self.now)
            self.now += step
            self.wall += step
            self.revalidator.check_groups(self.revalidator.groups)
            for _ in range(4):
                await asyncio.sleep(0)

    def caller(self, name: str = "ada", lifetime: float | None = None) -> Caller:
        claims = {} if lifetime is None else {"exp": self.wall + lifetime}
        payload = base64.urlsafe_b64encode(json.dumps({"sub": name, **claims}).encode()).decode().rstrip("=")
        return Caller.from_token(f"e30.{payload}.sig")


@pytest.fixture
def airflow() -> AirflowDouble:
    return AirflowDouble()


def subscription() -> Subscription:
    return Subscription(10**6)


def code(subscription: Subscription) -> CloseCode | None:
    return None if subscription.closed is None else CloseCode(subscription.closed.code)


async def test_all_streams_of_a_credential_and_a_dag_share_a_check(airflow: AirflowDouble) -> None:
    streams = [subscription() for _ in range(1000)]
    for number, stream in enumerate(streams):
        airflow.revalidator.register(
            Grant(airflow.caller(), StreamScope("chat", f"r{number % 10}"), FULL_ACCESS), stream, None
        )
    await airflow.advance(60)
    assert 2 <= len(airflow.requests) <= 3
    assert all(code(stream) is None for stream in streams)


async def test_another_credential_or_scope_has_another_check(airflow: AirflowDouble) -> None:
    for caller, scope in (
        (airflow.caller(), SCOPE),
        (airflow.caller("bob"), SCOPE),
        (airflow.caller(), StreamScope("other", "r1")),
        (airflow.caller(), StreamScope("chat")),
        (airflow.caller(), StreamScope()),
    ):
        airflow.revalidator.register(
            Grant(caller, scope, FULL_ACCESS if scope.run_id else ACCESS_WITHOUT_VALUES), subscription(), None
        )
    assert len(airflow.revalidator) == 5


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (AirflowRefused("Forbidden", 403), CloseCode.FORBIDDEN),
        (AirflowRefused("Token Expired", 401), CloseCode.UNAUTHENTICATED),
        (ACCESS_WITHOUT_VALUES, CloseCode.ACCESS_CHANGED),
    ],
)
async def test_a_stream_ends_within_a_minute_after_its_permission(
    airflow: AirflowDouble, response: Access | Exception, expected: CloseCode
) -> None:
    streams = [subscription(), subscription()]
    for stream in streams:
        airflow.revalidator.register(Grant(airflow.caller(), SCOPE, FULL_ACCESS), stream, None)
    await airflow.advance(INTERVAL)
    airflow.response = response
    await airflow.advance(INTERVAL + 4)
    assert [code(stream) for stream in streams] == [expected] * 2


async def test_the_first_check_is_early(airflow: AirflowDouble) -> None:
    airflow.revalidator.register(Grant(airflow.caller(), SCOPE, FULL_ACCESS), subscription(), None)
    await airflow.advance(INTERVAL / 2 + 2)
    assert len(airflow.requests) == 1


@pytest.mark.parametrize(
    "response",
    [PermissionUnknown("down"), AirflowRefused("There is no such DAG", 404), TypeError("null"), RecursionError()],
    ids=repr,
)
async def test_without_an_answer_streams_continue_for_the_grace_period(
    airflow: AirflowDouble, response: Exception
) -> None:
    stream = subscription()
    airflow.revalidator.register(Grant(airflow.caller(), SCOPE, FULL_ACCESS), stream, None)
    airflow.response = response
    await airflow.advance(GRACE)
    assert code(stream) is None
    await airflow.advance(INTERVAL + 4)
    assert code(stream) is CloseCode.UNAVAILABLE
    assert stream.closed is not None
    assert stream.closed.reconnect
    assert len(airflow.requests) <= (GRACE + INTERVAL + 4) / (RETRY_SECONDS * LATER_DELAY[0])


async def test_only_the_first_unexpected_exception_in_a_row_is_logged(
    airflow: AirflowDouble, caplog: pytest.LogCaptureFixture
) -> None:
    airflow.revalidator.register(Grant(airflow.caller(), SCOPE, FULL_ACCESS), subscription(), None)
    airflow.response = TypeError("null")
    await airflow.advance(INTERVAL + 60)
    assert len(airflow.requests) > 2
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_an_answer_ends_the_grace_period(airflow: AirflowDouble) -> None:
    stream = subscription()
    airflow.revalidator.register(Grant(airflow.caller(), SCOPE, FULL_ACCESS), stream, None)
    airflow.response = PermissionUnknown("down")
    await airflow.advance(GRACE - 10)
    airflow.response = FULL_ACCESS
    await airflow.advance(GRACE - 10)
    airflow.response = PermissionUnknown("down")
    await airflow.advance(GRACE - 10)
    assert code(stream) is None


async def test_a_client_is_warned_once_before_its_token_expires(airflow: AirflowDouble) -> None:
    caller, stream = airflow.caller(lifetime=600), subscription()
    airflow.revalidator.register(Grant(caller, SCOPE, FULL_ACCESS), stream, None)
    await airflow.advance(538)
    assert code(stream) is None
    await airflow.advance(6)
    assert code(stream) is CloseCode.AUTH_EXPIRING
    late = subscription()
    airflow.revalidator.register(Grant(caller, SCOPE, FULL_ACCESS), late, None)
    await airflow.advance(50)
    assert code(late) is None


async def test_a_client_that_can_send_a_token_is_warned_and_continues(airflow: AirflowDouble) -> None:
    stream, warned = subscription(), list[float]()
    permission = airflow.revalidator.register(
        Grant(airflow.caller(lifetime=120), SCOPE, FULL_ACCESS),
        stream,
        lambda _, expires_at: warned.append(expires_at.timestamp()),
    )
    expires_at = airflow.wall + 120
    await airflow.advance(64)
    assert warned == [expires_at]
    fresh = airflow.caller(lifetime=3600)
    await permission.revalidate(fresh)
    assert len(airflow.revalidator) == 1
    await airflow.advance(INTERVAL)
    assert airflow.requests[-1][0] == fresh
    assert (code(stream), len(warned)) == (None, 1)


async def test_a_refused_new_token_changes_nothing(airflow: AirflowDouble) -> None:
    stream = subscription()
    permission = airflow.revalidator.register(Grant(airflow.caller(), SCOPE, FULL_ACCESS), stream, None)
    airflow.response = AirflowRefused("Forbidden", 403)
    with pytest.raises(AirflowRefused):
        await permission.revalidate(airflow.caller("bob"))
    airflow.response = FULL_ACCESS
    await airflow.advance(INTERVAL)
    assert airflow.requests[-1][0] == airflow.caller()


async def test_a_token_with_other_access_makes_the_client_reconnect(airflow: AirflowDouble) -> None:
    stream = subscription()
    permission = airflow.revalidator.register(Grant(airflow.caller(), SCOPE, FULL_ACCESS), stream, None)
    airflow.response = ACCESS_WITHOUT_VALUES
    await permission.revalidate(airflow.caller("bob"))
    assert code(stream) is CloseCode.ACCESS_CHANGED


async def test_an_ended_stream_is_removed(airflow: AirflowDouble) -> None:
    permissions = [
        airflow.revalidator.register(Grant(airflow.caller(), SCOPE, FULL_ACCESS), subscription(), None)
        for _ in range(2)
    ]
    for permission, remaining in zip(permissions, (1, 0), strict=True):
        permission.release()
        assert len(airflow.revalidator) == remaining
    await airflow.advance(2 * INTERVAL)
    assert airflow.requests == []


async def test_streams_with_other_access_are_checked_separately(airflow: AirflowDouble) -> None:
    first, second = subscription(), subscription()
    airflow.revalidator.register(Grant(airflow.caller(), SCOPE, FULL_ACCESS), first, None)
    airflow.response = ACCESS_WITHOUT_VALUES
    airflow.revalidator.register(Grant(airflow.caller(), SCOPE, ACCESS_WITHOUT_VALUES), second, None)
    await airflow.advance(2 * INTERVAL)
    assert (code(first), code(second)) == (CloseCode.ACCESS_CHANGED, None)


async def test_concurrent_checks_are_bounded(airflow: AirflowDouble) -> None:
    streams = [subscription() for _ in range(200)]
    for number, stream in enumerate(streams):
        airflow.revalidator.register(Grant(airflow.caller(f"user{number}"), SCOPE, FULL_ACCESS), stream, None)
    airflow.responds.clear()
    await airflow.advance(INTERVAL)
    assert (len(airflow.requests), airflow.most_concurrent) == (MAX_CONCURRENT_CHECKS, MAX_CONCURRENT_CHECKS)
    airflow.responds.set()
    for _ in range(1000):
        await asyncio.sleep(0)
    assert (len(airflow.requests), airflow.most_concurrent) == (200, MAX_CONCURRENT_CHECKS)
    assert all(code(stream) is None for stream in streams)


async def test_a_group_without_streams_is_not_checked(airflow: AirflowDouble) -> None:
    permissions = [
        airflow.revalidator.register(Grant(airflow.caller(f"user{n}"), SCOPE, FULL_ACCESS), subscription(), None)
        for n in range(MAX_CONCURRENT_CHECKS + 1)
    ]
    airflow.responds.clear()
    await airflow.advance(INTERVAL)
    for permission in permissions:
        permission.release()
    airflow.responds.set()
    await airflow.advance(INTERVAL)
    assert len(airflow.requests) == MAX_CONCURRENT_CHECKS
    await airflow.revalidator.close()
