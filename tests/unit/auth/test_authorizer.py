from __future__ import annotations

import base64
import json

import pytest

from stream_server.auth.authorizer import Caller


def jwt(**claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'HS512'})}.{part(claims)}.{'x' * 86}"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_a_token_tells_when_it_expires(scheme: str) -> None:
    caller = Caller({"authorization": f"{scheme} {jwt(sub='ada', exp=1_700_000_000)}"})
    assert caller.expires_at == 1_700_000_000


def test_a_cookie_tells_when_its_token_expires() -> None:
    assert Caller({"cookie": f"theme=dark; _token={jwt(exp=1_700_000_000)}; a=b"}).expires_at == 1_700_000_000


def test_the_header_counts_more_than_the_cookie() -> None:
    headers = {"authorization": f"Bearer {jwt(exp=2)}", "cookie": f"_token={jwt(exp=1)}"}
    assert Caller(headers).expires_at == 2


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer opaque",
        "Bearer a.b.c",
        "Bearer a.é.c",
        "Bearer a.bnVsbA.c",
        f"Basic {jwt(exp=1)}",
        f"Bearer {jwt()}",
        f"Bearer {jwt(exp='soon')}",
        f"Bearer {jwt(exp=None)}",
        f"Bearer {jwt(exp=float('nan'))}",
        f"Bearer {jwt(exp=10**400)}",
        f"Bearer a.{base64.urlsafe_b64encode(b'[' * 30_000).decode()}.c",
    ],
)
def test_what_tells_no_time_is_no_error(authorization: str) -> None:
    assert Caller({"authorization": authorization}).expires_at is None


def test_a_caller_is_shown_without_what_he_is_known_by() -> None:
    assert "secret" not in repr(Caller.from_token("secret"))


def test_who_says_nothing_is_anonymous() -> None:
    assert Caller().is_anonymous
    assert not Caller.from_token("x").is_anonymous
