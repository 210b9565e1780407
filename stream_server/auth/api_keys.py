"""API keys that do not expire, for clients that have one key in their configuration. Each has an Airflow account.

The file has digests of keys, and where to find the password, or a token, of the account of each. So a reader of the
file can use neither. Requests run with the rights of the account at Airflow.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from pathlib import Path
from typing import Annotated

import httpx
import msgspec

from stream_server.auth.airflow_api import AirflowApi
from stream_server.auth.authorizer import BEARER_PREFIX, Caller
from stream_server.errors import AirflowNotResponding, AirflowUrlMissing, SettingsError
from stream_server.journal.password_source import PasswordUnavailable, make_password_reader
from stream_server.protocol.schema import INVALID_JSON

log = logging.getLogger(__name__)

MAX_TOKEN_AGE = 600.0
"""Seconds for which a token is used, whatever its lifetime."""

Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Account(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """An API key and its Airflow account: a user and a password, or a source of tokens."""

    sha256: Digest
    """Digest of the key, in hexadecimal."""

    username: str | None = None
    """User of the password; `None` if the source has a token."""

    file: str | None = None
    """File with the password or token in its first line."""

    command: str | None = None
    """Command that prints it. It runs without a shell."""


class _AccountFile(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[Account]


class ApiKeys:
    """The keys of a file, which is read again when it has changed, and tokens for their accounts.

    Args:
        file: Path of the file; `None` if there are no keys.
        airflow: A client of Airflow; `None` if its address is unknown.

    Raises:
        SettingsError: The file can't be read, or is not valid.
    """

    def __init__(self, file: str | None, airflow: httpx.AsyncClient | None) -> None:
        self._path = None if file is None else Path(file)
        self._airflow = airflow
        self._version: tuple[int, int] | None = None
        self._accounts: dict[str, Account] = {}
        self._tokens: dict[Account, _Token] = {}
        self._locks: dict[Account, asyncio.Lock] = {}
        if self._path is not None:
            self._load(self._path)

    async def resolve(self, caller: Caller) -> Caller:
        """Return the caller with a token of the account, if their credential is an API key; else the same caller.

        Raises:
            AirflowError: Airflow does not accept the account, or does not answer.
        AirflowUrlMissing: The account has a password, and the address of Airflow is unknown.
        """
        authorization = caller.headers.get("authorization", "")
        if self._path is None or authorization[: len(BEARER_PREFIX)].lower() != BEARER_PREFIX:
            return caller
        self._reload(self._path)
        key = authorization[len(BEARER_PREFIX) :].encode("latin-1", "replace")
        account = self._accounts.get(hashlib.sha256(key).hexdigest())
        if account is None:
            return caller
        # One login at a time: requests that come meanwhile use the same token.
        async with self._locks.setdefault(account, asyncio.Lock()):
            token = self._tokens.get(account)
            if token is None or token.is_old:
                token = self._tokens[account] = _Token(await self._get_token(account))
        return token.caller

    def forget(self, caller: Caller) -> None:
        """Use no token any more that Airflow has refused."""
        self._tokens = {account: token for account, token in self._tokens.items() if token.caller != caller}

    async def _get_token(self, account: Account) -> str:
        if account.username is not None and self._airflow is None:
            # The password must not be used as a token.
            raise AirflowUrlMissing
        read = make_password_reader(account.file, account.command)
        try:
            secret = "" if read is None else await read()
        except PasswordUnavailable as error:
            log.warning("Cannot use an API key: %s", error, extra={"action": "api_key_unusable"})
            raise AirflowNotResponding("The server can't get a token for this API key; its log has details") from None
        if account.username is None or self._airflow is None:
            return secret
        return await AirflowApi(self._airflow, {}).login(account.username, secret)

    def _reload(self, path: Path) -> None:
        """Read the file again if it has changed. If it is not valid, no key of it is accepted any more."""
        try:
            status = path.stat()
            if (status.st_mtime_ns, status.st_ino) != self._version:
                self._load(path)
        except (OSError, SettingsError) as error:
            if self._accounts:
                log.warning("No API key is accepted: %s", error, extra={"action": "api_keys_unreadable"})
            self._accounts, self._version = {}, None

    def _load(self, path: Path) -> None:
        try:
            status = path.stat()
            found = msgspec.json.decode(path.read_bytes(), type=_AccountFile)
        except OSError as error:
            raise SettingsError(f"The file of API keys {path} can't be read ({error.strerror})") from None
        except INVALID_JSON as error:
            raise SettingsError(f"The file of API keys {path} is not valid: {error}") from None
        if any((account.file is None) == (account.command is None) for account in found.keys):
            raise SettingsError(f"The file of API keys {path} is not valid: each key needs either `file` or `command`")
        self._accounts = {account.sha256: account for account in found.keys}
        self._version = (status.st_mtime_ns, status.st_ino)
        self._tokens = {account: token for account, token in self._tokens.items() if account in found.keys}


class _Token:
    """A token, and when it was obtained."""

    def __init__(self, token: str) -> None:
        self.caller = Caller.from_token(token)
        self._since = time.time()

    @property
    def is_old(self) -> bool:
        """Whether half of its lifetime is over: a stream that begins now must not end because of the token."""
        expires_at = self.caller.expires_at
        age = time.time() - self._since
        return age > MAX_TOKEN_AGE or (expires_at is not None and age > (expires_at - self._since) / 2)
