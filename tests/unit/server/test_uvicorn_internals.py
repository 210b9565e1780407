"""Every attribute of uvicorn that this package uses exists in the installed version, and the version is bounded."""

from __future__ import annotations

import ast
import inspect
from importlib.metadata import requires, version

import pytest
from packaging.requirements import Requirement
from uvicorn.config import Config
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState
from websockets.server import ServerProtocol

from stream_server.server import client_connections, flow_control, main, request_limits, websocket_connection

MODULES = (client_connections, websocket_connection, flow_control, main, request_limits)

OBJECTS: dict[str, type] = {
    "cycle": RequestResponseCycle,
    "self._claimed_cycle": RequestResponseCycle,
    "self.flow": FlowControl,
    "self.conn": ServerProtocol,
    "self.lifespan": LifespanOn,
    "self.server_state": ServerState,
    "self.config": Config,
}
"""Classes of uvicorn's objects, by the expressions that our code uses them by."""


def trees() -> list[ast.Module]:
    return [ast.parse(inspect.getsource(module)) for module in MODULES]


def attributes_of(tree: ast.AST, expression: str, *, stored: bool = False) -> set[str]:
    """Return the attributes of an object that code uses, or only those that it sets."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) == expression
        and (not stored or isinstance(node.ctx, ast.Store))
    }


def attributes_in(classes: list[type]) -> set[str]:
    """Return the attributes that classes define, or set in one of their methods."""
    found: set[str] = set()
    for one in classes:
        found |= {*vars(one), *inspect.get_annotations(one)}
        if one.__module__ != "builtins":
            tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(one)))
            found |= attributes_of(tree, "self", stored=True)
    return found


def ours_and_uvicorns() -> list[type]:
    """Return our classes that inherit from one of uvicorn."""
    return [
        found
        for module in MODULES
        for found in vars(module).values()
        if isinstance(found, type)
        and found.__module__ == module.__name__
        and any(base.__module__.startswith("uvicorn.") for base in found.__mro__)
    ]


@pytest.mark.parametrize("ours", ours_and_uvicorns())
def test_uvicorn_defines_what_our_subclasses_inherit(ours: type) -> None:
    bases = [base for base in ours.__mro__ if not base.__module__.startswith("stream_server.")]
    own = [base for base in ours.__mro__ if base.__module__.startswith("stream_server.")]
    declared = {name for one in own for name in (*vars(one), *inspect.get_annotations(one))}
    overridden = {name for one in own for name, value in vars(one).items() if getattr(value, "__override__", False)}
    used = attributes_of(ast.parse(inspect.getsource(ours)), "self")
    inherited = (used - declared) | overridden
    assert inherited, "the test finds nothing to check"
    assert inherited <= attributes_in(bases)


@pytest.mark.parametrize("expression", OBJECTS)
def test_uvicorn_defines_what_we_use_of_its_objects(expression: str) -> None:
    used = {name for tree in trees() for name in attributes_of(tree, expression)}
    assert used, "the test finds nothing to check"
    assert used <= attributes_in([*OBJECTS[expression].__mro__])


def test_status_lines_are_bytes_by_status() -> None:
    assert STATUS_LINE[431] == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"


def test_versions_of_uvicorn_that_were_not_tested_are_excluded() -> None:
    # One for each extra that contains it.
    requirements = [
        parsed for parsed in map(Requirement, requires("airflow-stream-server") or []) if parsed.name == "uvicorn"
    ]
    major, minor, *_ = map(int, version("uvicorn").split("."))
    assert requirements
    for requirement in requirements:
        assert requirement.specifier.contains(version("uvicorn"))
        assert not requirement.specifier.contains(f"{major}.{minor + 1}.0")
