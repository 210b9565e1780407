"""Who may see what. The seam: an `Authorizer` is asked before any stream begins."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec

from stream_server.run_state import RunKey

BEARER = "bearer "

COOKIE = "_token="
"""Where Airflow keeps the token of a browser (`airflow.api_fastapi.auth.managers.base_auth_manager`)."""


class _Claims(msgspec.Struct):
    """As much of a token as says how long it is good."""

    exp: float | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as he says so: the headers that Airflow would know him by.

    They are handed on as they are, and never shown: a token is worth as much as a password.
    """

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """`authorization`, or `cookie` as a whole: some auth managers keep several."""

    @classmethod
    def bearing(cls, token: str) -> Caller:
        """Return who has a bearer token (RFC 6750)."""
        return cls({"authorization": f"Bearer {token}"})

    @property
    def anonymous(self) -> bool:
        """Whether he does not say who he is."""
        return not self.headers

    @property
    def expires_at(self) -> float | None:
        """When the caller's token expires, in seconds since the epoch, if it says so.

        Read without looking at the signature, so that it is good for nothing but timing: Airflow decides.
        """
        _, _, payload = self._token().partition(".")
        payload, _, signature = payload.partition(".")
        if not signature:
            return None
        try:
            claims = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
            return msgspec.json.decode(claims, type=_Claims).exp
        except (binascii.Error, ValueError):
            return None

    def _token(self) -> str:
        """Return the token that Airflow goes by, if there is one."""
        authorization = self.headers.get("authorization")
        if authorization is not None:
            return authorization[len(BEARER) :] if authorization[: len(BEARER)].lower() == BEARER else ""
        cookies = (cookie.strip() for cookie in self.headers.get("cookie", "").split(";"))
        return next((cookie[len(COOKIE) :] for cookie in cookies if cookie.startswith(COOKIE)), "")


class Access(NamedTuple):
    """What a caller may see of a run."""

    results: bool
    """Whether he may read return values as well as transitions."""


class Authorizer(Protocol):
    """Decides what a caller may see. A refusal is raised, as the error that is told to him."""

    async def run(self, caller: Caller, key: RunKey) -> Access:
        """Return what a caller may see of a run. Nothing is said about whether there is such a run."""

    async def dag(self, caller: Caller, dag_id: str) -> Access:
        """Return what a caller may see of the runs of a DAG."""


class Everybody:
    """`--auth none`: everybody may see everything."""

    async def run(self, caller: Caller, key: RunKey) -> Access:
        """Return that all may be seen."""
        return Access(results=True)

    async def dag(self, caller: Caller, dag_id: str) -> Access:
        """Return that all may be seen."""
        return Access(results=True)
