"""The server shows a caller what Airflow shows for the same credential, for every kind of request."""

from __future__ import annotations

import httpx
import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.cli.demo.stack import DemoStack
from stream_server.domain.run_state import RunKey
from support.airflow_callers import DeniedPermissions, bearer_header, make_token
from support.permission_comparison import Headers, ServerAccess, differs, query_both

DAG = "chat_answer"


@pytest.fixture(scope="module")
def finished_run(airflow: AirflowRestClient) -> RunKey:
    """A finished run with a result."""
    key = RunKey(DAG, airflow.trigger_run(DAG, {"teardown_seconds": 0}))
    assert airflow.wait_until_finished(*key) == "success"
    return key


def revoked(airflow_url: str) -> str:
    token = make_token("logged_out", "admin")
    assert httpx.get(f"{airflow_url}/auth/logout", headers=bearer_header(token)).status_code in {200, 307, 404}
    assert httpx.get(f"{airflow_url}/api/v2/auth/logout", headers=bearer_header(token)).status_code == 307
    return token


def callers(airflow_url: str) -> dict[str, Headers]:
    roles = {role: bearer_header(make_token(role, role)) for role in ("admin", "op", "user", "viewer")}
    return {
        **roles,
        "without a role": bearer_header(make_token("no_role", None)),
        "of an unknown role": bearer_header(make_token("unknown", "unknown")),
        "without RUN": bearer_header(make_token("no_runs", "admin")),
        "without XCOM": bearer_header(make_token("no_xcoms", "admin")),
        "without the DAG": bearer_header(make_token("no_dag", "admin")),
        "by cookie": {"Cookie": f"theme=dark; _token={make_token('admin', 'admin')}"},
        "by cookie, without XCOM": {"Cookie": f"_token={make_token('no_xcoms', 'admin')}"},
        "by a cookie that has expired": {"Cookie": f"_token={make_token('admin', 'admin', lifetime=-60)}"},
        "by other cookies": {"Cookie": "theme=dark"},
        "anonymous": {},
        "expired": bearer_header(make_token("admin", "admin", lifetime=-60)),
        "forged": bearer_header(make_token("admin", "admin", secret="another-secret" * 6)),
        "no token": bearer_header("nonsense"),
        "basic": {"Authorization": "Basic YWRtaW46YWRtaW4="},
        "logged out": bearer_header(revoked(airflow_url)),
    }


DENIED = {"no_runs": ["RUN"], "no_xcoms": ["XCOM"], "no_dag": [DAG]}


async def test_every_caller_sees_what_airflow_shows_them(
    stack: DemoStack, auth_server: StreamServerProcess, finished_run: RunKey, denied: DeniedPermissions
) -> None:
    denied.deny_only(**DENIED)
    deviations, compared = [], 0
    for name, headers in callers(stack.airflow_url).items():
        is_anonymous = "Authorization" not in headers
        async with query_both(stack.airflow_url, auth_server.url, headers, finished_run) as pairs:
            for way, expected, actual in pairs:
                compared += 1
                if differs(way.split()[0], expected, actual, is_anonymous=is_anonymous):
                    deviations.append((name, way, expected, actual))
    assert deviations == []
    assert compared == 19 * 23


@pytest.mark.parametrize(
    ("name", "status", "values"),
    [
        ("admin", 200, True),
        ("user", 200, True),
        ("no_xcoms", 200, False),
        ("viewer", 403, None),
        ("no_runs", 403, None),
    ],
)
async def test_a_trigger_returns_what_the_caller_can_read(
    stack: DemoStack,
    auth_server: StreamServerProcess,
    denied: DeniedPermissions,
    name: str,
    status: int,
    *,
    values: bool | None,
) -> None:
    denied.deny_only(**DENIED)
    role = name if name in {"admin", "user", "viewer"} else "admin"
    ours = ServerAccess(auth_server.url, bearer_header(make_token(name, role)))
    response = await ours.trigger(DAG)
    await ours.close()
    assert (response.status, response.values) == (status, values)
