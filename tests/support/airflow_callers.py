"""Callers of a real Airflow, and what it takes to give and take their rights."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import jwt

SECRET = "a-secret-that-all-tests-of-this-airflow-share" * 2
"""`[api_auth] jwt_secret` of the tests' Airflow: with it, tests make tokens that no login gives."""

AUTH_MANAGER = Path(__file__).parents[1] / "airflow" / "auth"


def airflow_settings(denied: Path) -> dict[str, str]:
    """Return the environment of an Airflow whose permissions a file takes away."""
    denied.write_text("{}")
    return {
        "AIRFLOW__API_AUTH__JWT_SECRET": SECRET,
        "AIRFLOW__CORE__AUTH_MANAGER": "strict_auth_manager.StrictAuthManager",
        "PYTHONPATH": str(AUTH_MANAGER),
        "DENIED_FILE": str(denied),
    }


def token(user: str, role: str | None, *, lifetime: float = 3600, secret: str = SECRET) -> str:
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


def bearer(token: str) -> dict[str, str]:
    """Return the header that shows a token."""
    return {"Authorization": f"Bearer {token}"}


@dataclass(frozen=True)
class Denied:
    """The file with what is denied."""

    path: Path

    def set(self, **denied: list[str]) -> None:
        """Deny this, and nothing else; Airflow reads the file for each question."""
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(denied))
        beside.replace(self.path)


class Told(NamedTuple):
    """What somebody was told: by Airflow, or by us."""

    status: int
    detail: str | None = None
    values: bool | None = None
    """Whether return values were told, where there are some."""
