"""Authorization. An `Authorizer` is called before each stream starts, and revalidates it while it lives."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec

from stream_server.domain.run_state import RunKey
from stream_server.hub.filters import ReadPermissions
from stream_server.hub.subscription import Subscription

BEARER_PREFIX = "bearer "

COOKIE_PREFIX = "_token="
"""The cookie with a browser's token (`airflow.api_fastapi.auth.managers.base_auth_manager`)."""


class _JwtClaims(msgspec.Struct):
    exp: float | None = None


class _JwtSubject(msgspec.Struct):
    sub: str


_Claims = TypeVar("_Claims", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller, by the headers with which Airflow would identify it.

    They are forwarded unchanged and never shown: a token is worth as much as a password.
    """

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """`authorization`, or the whole `cookie` header: some auth managers use several cookies."""

    @classmethod
    def from_token(cls, token: str) -> Caller:
        """Return the caller with a bearer token (RFC 6750)."""
        return cls({"authorization": f"Bearer {token}"})

    @property
    def is_anonymous(self) -> bool:
        """Whether there is no credential."""
        return not self.headers

    @property
    def expires_at(self) -> float | None:
        """When the token expires, in seconds since the epoch; `None` if it is no JWT, or has no `exp`.

        The signature is not verified, so this is for timing only: Airflow decides whether a token is valid.
        """
        claims = _decode_claims(self._find_token(), _JwtClaims)
        return None if claims is None else claims.exp

    @property
    def account(self) -> str | None:
        """The user that all tokens of the headers name (`sub`), the same after a renewal; `None` if they name none.

        The signature is not verified: only for callers that Airflow has accepted. Airflow's version decides which of
        several tokens it verifies, so that one of them could be made up.
        """
        authorization = self.headers.get("authorization")
        cookies = (cookie.strip().partition("=") for cookie in self.headers.get("cookie", "").split(";"))
        tokens = [value.strip() for name, _, value in cookies if name.strip() == COOKIE_PREFIX[:-1]]
        if authorization is not None:
            tokens.append(_read_bearer(authorization))
        found = [_decode_claims(token, _JwtSubject) for token in tokens]
        subjects = {None if claims is None else claims.sub for claims in found}
        return subjects.pop() if len(subjects) == 1 else None

    def _find_token(self) -> str:
        """Return the token that Airflow uses, or an empty string. The header has precedence, also if it has none."""
        authorization = self.headers.get("authorization")
        if authorization is not None:
            return _read_bearer(authorization)
        cookies = (cookie.strip() for cookie in self.headers.get("cookie", "").split(";"))
        return next((cookie[len(COOKIE_PREFIX) :] for cookie in cookies if cookie.startswith(COOKIE_PREFIX)), "")


def _read_bearer(authorization: str) -> str:
    """Return the token of a header; empty if it has none."""
    has_token = authorization[: len(BEARER_PREFIX)].lower() == BEARER_PREFIX
    return authorization[len(BEARER_PREFIX) :] if has_token else ""


def _decode_claims(token: str, kind: type[_Claims]) -> _Claims | None:
    """Return claims of a JWT, whose signature is not verified; `None` if it is no JWT, or lacks them."""
    _, _, payload = token.partition(".")
    payload, _, signature = payload.partition(".")
    if not signature:
        return None
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=kind)
    except (binascii.Error, ValueError, RecursionError):
        return None


class Access(NamedTuple):
    """What a caller may see of a run, besides its transitions."""

    can_read_values: bool
    """Whether return values and output of tasks are visible."""

    can_read_inputs: bool = False
    """Whether requests for human input and their answers are visible."""


FULL_ACCESS = Access(can_read_values=True, can_read_inputs=True)
ACCESS_WITHOUT_VALUES = Access(can_read_values=False)


class StreamScope(NamedTuple):
    """What a stream shows."""

    dag_id: str = ""
    """The DAG; empty for all DAGs that the caller may read."""

    run_id: str = ""
    """The run; empty for all runs of a DAG."""

    output: bool = False
    """Whether it shows output of the runs of a DAG."""

    inputs: bool = False
    """Whether it shows the human input that the runs of a DAG ask for."""


class Grant(NamedTuple):
    """What a caller was permitted to see."""

    caller: Caller
    scope: StreamScope
    access: Access


OnTokenExpiring: TypeAlias = Callable[[Subscription, datetime], None]
"""Called some time before the token of a stream's caller expires, with that time."""


class LivePermission(Protocol):
    """The permission of a live stream, which is revalidated until `release`."""

    async def revalidate(self, caller: Caller) -> None:
        """Continue with another credential. If this raises, nothing has changed."""

    def release(self) -> None:
        """Stop revalidating: the stream is closed."""


class Authorizer(Protocol):
    """Decides what a caller may see. It raises the error that the client gets."""

    requires_credential: bool
    """Whether callers must identify themselves."""

    async def check_run(self, caller: Caller, key: RunKey) -> Access:
        """Return what a caller may see of a run."""

    async def check_dag(self, caller: Caller, dag_id: str, *, output: bool = False, inputs: bool = False) -> Access:
        """Return what a caller may see of the runs of a DAG. It includes only what is wanted: values, human input."""

    async def check_dags(self, caller: Caller) -> None:
        """Raise unless a caller may see the runs of all DAGs that it may read; `readable_dags` returns which."""

    def readable_dags(self, caller: Caller) -> ReadPermissions | None:
        """Return what a caller may read of all DAGs; `None` for everything."""

    def register_stream(
        self, grant: Grant, subscription: Subscription, expiring: OnTokenExpiring | None = None
    ) -> LivePermission | None:
        """Disconnect a stream when its caller may not see it any more.

        Args:
            grant: What the caller was permitted.
            subscription: The stream.
            expiring: Called before the token expires. By default the client is disconnected, to connect with a new one.
        """


class AllowAll:
    """`--auth none`: every caller may see everything."""

    requires_credential = False

    async def check_run(self, caller: Caller, key: RunKey) -> Access:
        return FULL_ACCESS

    async def check_dag(self, caller: Caller, dag_id: str, *, output: bool = False, inputs: bool = False) -> Access:
        return FULL_ACCESS

    async def check_dags(self, caller: Caller) -> None:
        pass

    def readable_dags(self, caller: Caller) -> None:
        pass

    def register_stream(
        self, grant: Grant, subscription: Subscription, expiring: OnTokenExpiring | None = None
    ) -> None:
        pass
