"""A whole Airflow with the auth manager of Flask AppBuilder, its roles and its users."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from matrix.environments import environment_python
from stream_server.cli.demo.airflow import Credentials
from stream_server.cli.demo.progress import ConsoleReporter
from stream_server.cli.demo.stack import DemoStack
from support import human_forms
from support.airflow_callers import SECRET, bearer_header
from support.postgres import DATA_DIR, FAST
from support.stack import LOW_LOAD

VERSION = "3.3.2-fab"
MANAGER = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
DAGS = Path(__file__).with_name("dags")
COMMANDS = Path(__file__).with_name("airflow_commands.py")
COMMAND_SECONDS = 180.0
SECONDS = 60.0

READING = ("DAG Runs", "Task Instances", "XComs")
"""Resources that a caller needs besides a DAG to read its runs and their return values."""

WITHOUT_INPUT = "reader without input"
"""A role that can read all DAGs and their runs, but not their requests for human input."""

ROLES = {
    "guest": READING,
    "guest without XComs": ("DAG Runs", "Task Instances"),
    "guest of runs": ("Task Instances", "XComs"),
    "triggering guest": READING,
}
"""Roles that can read only DAGs that name them (`dags/for_guests.py`), and the resources that it gives them."""

USERS = {
    "admin": "Admin",
    "op": "Op",
    "user": "User",
    "viewer": "Viewer",
    "public": "Public",
    "without_input": WITHOUT_INPUT,
    **{role.replace(" ", "_"): role for role in ROLES},
    "logged_out": "Viewer",
    "role_changed": "Viewer",
    "deleted": "Viewer",
    "deleted_later": "Viewer",
    "xcoms_revoked": "guest",
}
"""Users, and the role of each; the password is the name."""


@dataclass(frozen=True)
class FabAirflow:
    """A running Airflow with that auth manager."""

    stack: DemoStack
    python: Path

    @property
    def url(self) -> str:
        return self.stack.airflow_url

    def run(self, *commands: Sequence[str]) -> None:
        """Run commands of Airflow.

        Raises:
            AssertionError: One failed; the message ends with its output.
        """
        done = subprocess.run(
            [str(self.python), str(COMMANDS)],
            input="".join(json.dumps(command) + "\n" for command in commands),
            env=self.stack.airflow.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )
        assert done.returncode == 0, f"{commands} failed:\n{done.stdout}"

    def token(self, user: str) -> str:
        """Log in with a password; return the token."""
        with self.stack.airflow.rest_client(Credentials(user, user)) as rest:
            return rest.token

    def cookies(self, user: str) -> dict[str, str]:
        """Sign in on Airflow's page; return the cookies."""
        with httpx.Client(base_url=self.url, timeout=SECONDS, trust_env=False, follow_redirects=True) as browser:
            page = browser.get("/auth/login/").raise_for_status().text
            form = re.search(r'name="csrf_token"[^>]* value="([^"]+)"', page)
            assert form is not None, page
            signed = browser.post("/auth/login/", data={"csrf_token": form[1], "username": user, "password": user})
            assert "_token" in browser.cookies, signed.text
            return {"Cookie": "; ".join(f"{name}={value}" for name, value in browser.cookies.items())}

    def set_role(self, user: str, role: str) -> None:
        """Give a user exactly this role."""
        self._change("PATCH", user, json={"roles": [{"name": role}]}, params={"update_mask": "roles"})

    def delete_user(self, user: str) -> None:
        """Delete a user."""
        self._change("DELETE", user)

    def _change(self, method: str, user: str, **arguments: Any) -> None:
        headers = bearer_header(self.token("admin"))
        with httpx.Client(base_url=self.url, headers=headers, timeout=SECONDS, trust_env=False) as admin:
            answer = admin.request(method, f"/auth/fab/v1/users/{user}", **arguments)
        assert answer.is_success, answer.text


@contextmanager
def running_fab() -> Iterator[FabAirflow]:
    """Run it, with a stream server without authorization."""
    python = environment_python(VERSION)
    settings = {
        "AIRFLOW__API_AUTH__JWT_SECRET": SECRET,
        "AIRFLOW__CORE__AUTH_MANAGER": MANAGER,
        # By default Airflow caches permissions for half a minute, and limits the rate of logins.
        "AIRFLOW__FAB__CACHE_TTL": "1",
        "AIRFLOW__FAB__AUTH_RATE_LIMITED": "False",
        **LOW_LOAD,
    }
    stack = DemoStack(
        DATA_DIR,
        dags=[DAGS, human_forms.DAGS],
        examples=False,
        postgres_settings=FAST,
        airflow_settings=settings,
        airflow_python=python,
        serve_options=("--auth", "none"),
        progress=ConsoleReporter(),
    )
    try:
        stack.start_database()
        fab = FabAirflow(stack, python)
        fab.run(["fab-db", "migrate"], *_roles(), *_users())
        stack.start_services()
        stack.airflow.wait_for_dags(["for_all", "for_guests", human_forms.DAG_ID], ConsoleReporter())
        yield fab
    except BaseException:
        stack.stop(keep_logs=True)
        raise
    stack.stop()


def _roles() -> list[list[str]]:
    resources = {**ROLES, WITHOUT_INPUT: ("DAGs", *READING)}
    adding = (
        ["roles", "add-perms", role, "--action", "can_read", "--resource", *resources[role]] for role in resources
    )
    return [["roles", "create", *resources], *adding]


def _users() -> list[list[str]]:
    names = (("--username", "--password", "--firstname", "--lastname"), "--email", "--role")
    return [
        [
            *("users", "create"),
            *(part for name in names[0] for part in (name, user)),
            *(names[1], f"{user}@localhost.test"),
            *(names[2], role),
        ]
        for user, role in USERS.items()
    ]
