"""Who may see what is what Airflow itself says to the same credential, on every way to ask."""

from __future__ import annotations

import httpx
import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.cli.demo.stack import DemoStack
from stream_server.domain.run_state import RunKey
from support.airflow_callers import Denied, bearer, token
from support.permission_comparison import Headers, Ours, differs, said_and_told

DAG = "chat_answer"


@pytest.fixture(scope="module")
def over(airflow: AirflowRestClient) -> RunKey:
    """A run that has answered."""
    key = RunKey(DAG, airflow.trigger_run(DAG, {"teardown_seconds": 0}))
    assert airflow.wait_until_finished(*key) == "success"
    return key


def revoked(airflow_url: str) -> str:
    gone = token("leaver", "admin")
    assert httpx.get(f"{airflow_url}/auth/logout", headers=bearer(gone)).status_code in {200, 307, 404}
    assert httpx.get(f"{airflow_url}/api/v2/auth/logout", headers=bearer(gone)).status_code == 307
    return gone


def callers(airflow_url: str) -> dict[str, Headers]:
    roles = {role: bearer(token(role, role)) for role in ("admin", "op", "user", "viewer")}
    return {
        **roles,
        "without a role": bearer(token("nobody", None)),
        "of an unknown role": bearer(token("stranger", "stranger")),
        "without RUN": bearer(token("no_runs", "admin")),
        "without XCOM": bearer(token("no_xcoms", "admin")),
        "without the DAG": bearer(token("no_dag", "admin")),
        "by cookie": {"Cookie": f"theme=dark; _token={token('admin', 'admin')}"},
        "by cookie, without XCOM": {"Cookie": f"_token={token('no_xcoms', 'admin')}"},
        "by a cookie that has expired": {"Cookie": f"_token={token('admin', 'admin', lifetime=-60)}"},
        "by other cookies": {"Cookie": "theme=dark"},
        "nobody": {},
        "expired": bearer(token("admin", "admin", lifetime=-60)),
        "forged": bearer(token("admin", "admin", secret="another-secret" * 6)),
        "no token": bearer("nonsense"),
        "basic": {"Authorization": "Basic YWRtaW46YWRtaW4="},
        "logged out": bearer(revoked(airflow_url)),
    }


DENIED = {"no_runs": ["RUN"], "no_xcoms": ["XCOM"], "no_dag": [DAG]}


async def test_everybody_is_told_what_airflow_would_tell_him(
    stack: DemoStack, guarded: StreamServerProcess, over: RunKey, denied: Denied
) -> None:
    denied.set(**DENIED)
    deviations, asked = [], 0
    for name, headers in callers(stack.airflow_url).items():
        introduced = "Authorization" not in headers
        async with said_and_told(stack.airflow_url, guarded.url, headers, over) as pairs:
            for way, said, told in pairs:
                asked += 1
                if differs(way.split()[0], said, told, introduced=introduced):
                    deviations.append((name, way, said, told))
    assert deviations == []
    assert asked == 19 * 23


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
async def test_who_triggers_is_told_what_he_may_read(
    stack: DemoStack, guarded: StreamServerProcess, denied: Denied, name: str, status: int, *, values: bool | None
) -> None:
    denied.set(**DENIED)
    role = name if name in {"admin", "user", "viewer"} else "admin"
    ours = Ours(guarded.url, bearer(token(name, role)))
    told = await ours.trigger(DAG)
    await ours.close()
    assert (told.status, told.values) == (status, values)
