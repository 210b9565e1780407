"""The examples of proxies send every path of the API to stream_server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.convertors import PathConvertor
from starlette.routing import Route, WebSocketRoute

from stream_server.http.routes import api_routes

PROXIES = Path(__file__).parents[3] / "examples" / "proxies"

ALIASES = ("/chat/completions", "/responses", "/models")
"""Paths of OpenAI's API without `/v1`, which proxies do not route here."""

AIRFLOW_PATHS = (
    "/api/v2/dags",
    "/api/v2/dags/etl",
    "/api/v2/dags/etl/dagRuns/one",
    "/api/v2/dags/etl/dagRuns/one/taskInstances",
    "/api/v2/dags/etl/ag-ui/thread",
    "/.well-known/openid-configuration",
)


@pytest.mark.parametrize("name", ["nginx.conf", "haproxy.cfg", "Caddyfile"])
def test_a_proxy_routes_all_paths_of_the_api(name: str) -> None:
    patterns = read_patterns(name)

    def is_routed(path: str) -> bool:
        return any(re.search(pattern, path) for pattern in patterns)

    paths = {*build_paths(), "/api/v2/dags/etl/ag-ui/team/thread/connect"}
    assert len(paths) > 25
    assert not [path for path in sorted(paths) if not is_routed(path)]
    assert not [path for path in AIRFLOW_PATHS if is_routed(path)]


def build_paths() -> Iterator[str]:
    """Return a path for each route."""
    for route in api_routes():
        assert isinstance(route, Route | WebSocketRoute)
        if route.path.startswith(ALIASES):
            continue
        values = {
            name: "team/one" if isinstance(convertor, PathConvertor) else "manual__2026-01-01T00:00:00+00:00"
            for name, convertor in route.param_convertors.items()
        }
        yield route.path_format.format_map(values)


def read_patterns(name: str) -> list[str]:
    """Return the regular expressions of the paths that a proxy sends to stream_server."""
    text = (PROXIES / name).read_text()
    match name:
        case "nginx.conf":
            found = re.findall(r"location (=|~) (\S+) \{\s+proxy_pass http://(?:stream_server|\$triggered);", text)
            return [pattern if kind == "~" else exactly(pattern) for kind, pattern in found]
        case "haproxy.cfg":
            used = {
                word for line in re.findall(r"use_backend (?:streams|answers) if (.+)", text) for word in line.split()
            }
            acls = [acl for acl in re.findall(r"acl (\S+) (path_reg|path) (.+)", text) if acl[0] in used]
        case _:
            used = {*re.findall(r"handle (@\w+) \{\s+reverse_proxy 127\.0\.0\.1:8090", text)}
            acls = [
                (one, "path_regexp", regexp)
                for one, regexp in re.findall(r"^\s*(@\w+) (?:\{[^}]*?)?path_regexp (\S+)", text, re.MULTILINE)
            ]
            acls += [(one, "path", paths) for one, paths in re.findall(r"(@\w+) path (.+)", text)]
            acls = [acl for acl in acls if acl[0] in used]
    return [pattern for _, kind, value in acls for pattern in ([value] if "_" in kind else map(exactly, value.split()))]


def exactly(path: str) -> str:
    return f"^{re.escape(path)}$"
