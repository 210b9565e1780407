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
from stream_server.hub.firehose import ReadPermissions
from stream_server.hub.subscription import Subscription

BEARER_PREFIX = "bearer "

COOKIE_PREFIX = "_token="
"""Where Airflow keeps the token of a browser (`airflow.api_fastapi.auth.managers.base_auth_manager`)."""


class _JwtClaims(msgspec.Struct):
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
    def from_token(cls, token: str) -> Caller:
        """Return who has a bearer token (RFC 6750)."""
        return cls({"authorization": f"Bearer {token}"})

    @property
    def is_anonymous(self) -> bool:
        """Whether he does not say who he is."""
        return not self.headers

    @property
    def expires_at(self) -> float | None:
        """When the caller's token expires, in seconds since the epoch, if it says so.

        Read without looking at the signature, so that it is good for nothing but timing: Airflow decides.
        """
        _, _, payload = self._find_token().partition(".")
        payload, _, signature = payload.partition(".")
        if not signature:
            return None
        try:
            claims = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
            return msgspec.json.decode(claims, type=_JwtClaims).exp
        except (binascii.Error, ValueError, RecursionError):
            return None

    def _find_token(self) -> str:
        """Return the token that Airflow goes by, if there is one."""
        authorization = self.headers.get("authorization")
        if authorization is not None:
            return (
                authorization[len(BEARER_PREFIX) :]
                if authorization[: len(BEARER_PREFIX)].lower() == BEARER_PREFIX
                else ""
            )
        cookies = (cookie.strip() for cookie in self.headers.get("cookie", "").split(";"))
        return next((cookie[len(COOKIE_PREFIX) :] for cookie in cookies if cookie.startswith(COOKIE_PREFIX)), "")


class Access(NamedTuple):
    """What a caller may see of a run."""

    can_read_values: bool
    """Whether he may read what tasks return and say, as well as transitions."""


FULL_ACCESS, ACCESS_WITHOUT_VALUES = Access(can_read_values=True), Access(can_read_values=False)


class StreamScope(NamedTuple):
    """What a stream shows."""

    dag_id: str = ""
    """The DAG; empty for all that the caller may read."""

    run_id: str = ""
    """The run, where it is one; empty for all of a DAG."""

    output: bool = False
    """Whether it shows what the tasks of a DAG's runs say."""


OnTokenExpiring: TypeAlias = Callable[[Subscription, datetime], None]
"""Tells the client of a subscription that his token is about to expire, and when."""


class LivePermission(Protocol):
    """Keeps a stream to what its caller may see, for as long as it lives."""

    async def revalidate(self, caller: Caller) -> None:
        """Go on with another credential. A refusal is raised, and then nothing has changed."""

    def release(self) -> None:
        """Let go: the stream is over."""


class Authorizer(Protocol):
    """Decides what a caller may see. A refusal is raised, as the error that is told to him."""

    requires_credential: bool
    """Whether callers must say who they are."""

    async def check_run(self, caller: Caller, key: RunKey) -> Access:
        """Return what a caller may see of a run."""

    async def check_dag(self, caller: Caller, dag_id: str, *, output: bool = False) -> Access:
        """Return what a caller may see of the runs of a DAG; where no `output` is wanted, no values."""

    async def check_dags(self, caller: Caller) -> None:
        """Let a caller see the runs of all DAGs that he may read; which, `readable` tells."""

    def readable_dags(self, caller: Caller) -> ReadPermissions | None:
        """Return what a caller may read of all DAGs; `None` for everything."""

    def register_stream(
        self,
        caller: Caller,
        scope: StreamScope,
        access: Access,
        subscription: Subscription,
        expiring: OnTokenExpiring | None = None,
    ) -> LivePermission | None:
        """Close a stream when its caller may not see it any more.

        Args:
            caller: Who was let in.
            scope: What it shows.
            access: What he was let see.
            subscription: His place in it.
            expiring: Called before his token expires; by default the stream is closed, for him to come again.
        """


class AllowAll:
    """`--auth none`: everybody may see everything."""

    requires_credential = False

    async def check_run(self, caller: Caller, key: RunKey) -> Access:
        """Return that all may be seen."""
        return FULL_ACCESS

    async def check_dag(self, caller: Caller, dag_id: str, *, output: bool = False) -> Access:
        """Return that all may be seen."""
        return FULL_ACCESS

    async def check_dags(self, caller: Caller) -> None:
        """Let everybody in."""

    def readable_dags(self, caller: Caller) -> None:
        """Return that all may be seen."""

    def register_stream(
        self,
        caller: Caller,
        scope: StreamScope,
        access: Access,
        subscription: Subscription,
        expiring: OnTokenExpiring | None = None,
    ) -> None:
        """Do nothing: it will be so for ever."""
