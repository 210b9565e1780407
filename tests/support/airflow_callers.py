"""Callers of a real Airflow: tokens, and a file that takes permissions away."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import jwt

SECRET = "a-secret-that-all-tests-of-this-airflow-share" * 2
"""`[api_auth] jwt_secret` of the tests' Airflow: with it, tests make tokens without a login."""

AUTH_MANAGER = Path(__file__).parents[1] / "airflow" / "auth"
RARE_GARBAGE = Path(__file__).with_name("rare_garbage")
"""Folder for PYTHONPATH: processes collect garbage rarely, as do those of `support.fast_start`."""


def airflow_settings(denied: Path) -> dict[str, str]:
    """Return the environment of an Airflow that reads denied permissions from a file."""
    denied.write_text("{}")
    return {
        "AIRFLOW__API_AUTH__JWT_SECRET": SECRET,
        "AIRFLOW__CORE__AUTH_MANAGER": "strict_auth_manager.StrictAuthManager",
        "PYTHONPATH": os.pathsep.join(map(str, (AUTH_MANAGER, RARE_GARBAGE))),
        "DENIED_FILE": str(denied),
    }


def make_token(user: str, role: str | None, *, lifetime: float = 3600, secret: str = SECRET) -> str:
    """Return a token as Airflow's simple auth manager makes them."""
    now = time.time()
    claims = {
        "sub": user,
        "role": role,
        "teams": None,
        "aud": "apache-airflow",
        "iat": now - 60,
        "nbf": now - 60,
        "exp": now + lifetime,
        "jti": uuid4().hex,
    }
    return jwt.encode(claims, secret, algorithm="HS512", headers={"kid": "not-used"})


def bearer_header(token: str) -> dict[str, str]:
    """Return the header with a token."""
    return {"Authorization": f"Bearer {token}"}


@dataclass(frozen=True)
class DeniedPermissions:
    """The file with the denied permissions."""

    path: Path

    def deny_only(self, **denied: list[str]) -> None:
        """Deny exactly these permissions, by user. Airflow reads the file for each request."""
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(denied))
        beside.replace(self.path)


class Access(NamedTuple):
    """What a caller received from Airflow or from the server."""

    status: int
    detail: str | None = None
    values: bool | None = None
    """Whether return values were visible; `None` if there are none."""
