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
def test_expiry_of_a_bearer_token(scheme: str) -> None:
    caller = Caller({"authorization": f"{scheme} {jwt(sub='ada', exp=1_700_000_000)}"})
    assert caller.expires_at == 1_700_000_000


def test_expiry_of_a_token_in_a_cookie() -> None:
    assert Caller({"cookie": f"theme=dark; _token={jwt(exp=1_700_000_000)}; a=b"}).expires_at == 1_700_000_000


def test_the_header_has_precedence_over_the_cookie() -> None:
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
def test_tokens_without_an_expiry_are_no_error(authorization: str) -> None:
    assert Caller({"authorization": authorization}).expires_at is None


def test_a_renewed_token_names_the_same_account() -> None:
    headers = [{"authorization": f"Bearer {jwt(sub='ada', exp=exp)}"} for exp in (1, 2)]
    headers.append({"cookie": f"a=b; _token={jwt(sub='ada')}; c=d"})
    headers.append({"authorization": f"bearer {jwt(sub='ada')}", "cookie": f"_token={jwt(sub='ada', exp=3)}"})
    assert {Caller(one).account for one in headers} == {"ada"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"cookie": "theme=dark"},
        {"authorization": "Bearer opaque"},
        {"authorization": f"Bearer {jwt(exp=1)}"},
        {"authorization": f"Bearer {jwt(sub=1)}"},
        {"authorization": f"Bearer {jwt(sub='ada')}", "cookie": f"_token={jwt(sub='bob')}"},
        {"authorization": "Basic YTpi", "cookie": f"_token={jwt(sub='ada')}"},
        {"cookie": f"_token={jwt(sub='ada')}; _token={jwt(sub='bob')}"},
        {"cookie": f"_token={jwt(sub='ada')}; _token ={jwt(sub='bob')}"},
    ],
)
def test_an_account_that_airflow_might_not_have_verified_is_unknown(headers: dict[str, str]) -> None:
    assert Caller(headers).account is None


def test_the_repr_of_a_caller_has_no_credential() -> None:
    assert "secret" not in repr(Caller.from_token("secret"))


def test_a_caller_without_headers_is_anonymous() -> None:
    assert Caller().is_anonymous
    assert not Caller.from_token("x").is_anonymous
