"""Who may see what. The seam: an `Authorizer` is asked before any stream begins."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from stream_server.domain.run_state import RunKey
from stream_server.hub.firehose import Readable
from stream_server.hub.subscription import Subscription

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
        except (binascii.Error, ValueError, RecursionError):
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
    """Whether he may read what tasks return and say, as well as transitions."""


ALL, NO_VALUES = Access(results=True), Access(results=False)


class Scope(NamedTuple):
    """What a stream shows."""

    dag_id: str = ""
    """The DAG; empty for all that the caller may read."""

    run_id: str = ""
    """The run, where it is one; empty for all of a DAG."""

    output: bool = False
    """Whether it shows what the tasks of a DAG's runs say."""


Expiring: TypeAlias = Callable[[Subscription, datetime], None]
"""Tells the client of a subscription that his token is about to expire, and when."""


class Guard(Protocol):
    """Keeps a stream to what its caller may see, for as long as it lives."""

    async def renew(self, caller: Caller) -> None:
        """Go on with another credential. A refusal is raised, and then nothing has changed."""

    def release(self) -> None:
        """Let go: the stream is over."""


class Authorizer(Protocol):
    """Decides what a caller may see. A refusal is raised, as the error that is told to him."""

    asks_who: bool
    """Whether callers must say who they are."""

    async def run(self, caller: Caller, key: RunKey) -> Access:
        """Return what a caller may see of a run."""

    async def dag(self, caller: Caller, dag_id: str, *, output: bool = False) -> Access:
        """Return what a caller may see of the runs of a DAG; where no `output` is wanted, no values."""

    async def dags(self, caller: Caller) -> None:
        """Let a caller see the runs of all DAGs that he may read; which, `readable` tells."""

    def readable(self, caller: Caller) -> Readable | None:
        """Return what a caller may read of all DAGs; `None` for everything."""

    def guard(
        self,
        caller: Caller,
        scope: Scope,
        access: Access,
        subscription: Subscription,
        expiring: Expiring | None = None,
    ) -> Guard | None:
        """Close a stream when its caller may not see it any more.

        Args:
            caller: Who was let in.
            scope: What it shows.
            access: What he was let see.
            subscription: His place in it.
            expiring: Called before his token expires; by default the stream is closed, for him to come again.
        """


class Everybody:
    """`--auth none`: everybody may see everything."""

    asks_who = False

    async def run(self, caller: Caller, key: RunKey) -> Access:
        """Return that all may be seen."""
        return ALL

    async def dag(self, caller: Caller, dag_id: str, *, output: bool = False) -> Access:
        """Return that all may be seen."""
        return ALL

    async def dags(self, caller: Caller) -> None:
        """Let everybody in."""

    def readable(self, caller: Caller) -> None:
        """Return that all may be seen."""

    def guard(
        self,
        caller: Caller,
        scope: Scope,
        access: Access,
        subscription: Subscription,
        expiring: Expiring | None = None,
    ) -> None:
        """Do nothing: it will be so for ever."""
