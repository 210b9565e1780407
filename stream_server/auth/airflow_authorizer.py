"""`--auth airflow`: Airflow decides. It is asked with the caller's own credential, for things that nobody needs.

Airflow's permissions are those of a DAG (`requires_access_dag` takes nothing but `dag_id` from a request), so that one
answer is good for all its runs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TypeVar
from urllib.parse import quote
from weakref import WeakValueDictionary

import httpx
import msgspec

from stream_server.auth.airflow_api import AirflowAnswer, AirflowApi, DagPage, RunBody, RunPage, XComPage, run_path
from stream_server.auth.authorizer import ACCESS_WITHOUT_VALUES, Access, Caller, OnTokenExpiring, StreamScope
from stream_server.auth.permission_cache import CachedPermission, PermissionCache
from stream_server.auth.readable_dags import ReadableDags
from stream_server.auth.revalidation import Revalidator, StreamPermission
from stream_server.domain.run_state import RunKey
from stream_server.errors import AirflowNotResponding, AirflowRefused, PermissionUnknown, RunNotFound
from stream_server.hub.firehose import Resource
from stream_server.hub.subscription import Subscription

log = logging.getLogger(__name__)

REFUSAL_LIFETIME_SHARE = 1 / 3
"""For how much of the time that a permit is good a refusal stands."""

MAX_PERMISSIONS = 20_000
"""Permits that are kept."""

DAGS_PER_PAGE = 100
"""DAGs that are listed at once: the most that Airflow does by default."""

MAX_CONCURRENT_REQUESTS = 8
"""Questions that may be under way."""

TIMEOUT_SECONDS = 10.0
"""For each step of a question."""

WARNING_INTERVAL_SECONDS = 10.0
"""How often the log tells that Airflow does not answer, at most."""

DOT_SEGMENTS = {".", ".."}

EMPTY_RUN_QUERY = "limit=1&run_after_gte=9999-12-31T00:00:00Z"
"""Runs that there are none of: whether they may be read is all that is asked."""

EMPTY_XCOM_QUERY = "limit=1&xcom_key="
"""XComs that there are none of, which PostgreSQL finds by an index; without a key it counts all of the DAG."""

OK, UNAUTHENTICATED, NOT_FOUND = 200, 401, 404

DEFAULT_CHALLENGES = {UNAUTHENTICATED: "Bearer", 403: None, NOT_FOUND: None}
"""Refusals, and the challenge that comes with them where Airflow gives none (RFC 9110 section 15.5.2)."""

_Body = TypeVar("_Body", bound=msgspec.Struct)


class AirflowAuthorizer:
    """Asks Airflow.

    Args:
        client: An open client whose base URL is Airflow's address.
        good_for: Seconds for which an answer is good, and after which it is asked for again while a stream lives.
        grace: Seconds for which streams go on where Airflow does not answer.
    """

    requires_credential = True

    def __init__(self, client: httpx.AsyncClient, *, good_for: float, grace: float) -> None:
        self._client = client
        self._good_for, self._grace = good_for, grace
        self._permissions = PermissionCache(
            good_for=good_for,
            refused_for=good_for * REFUSAL_LIFETIME_SHARE,
            limit=MAX_PERMISSIONS,
            at_once=MAX_CONCURRENT_REQUESTS,
        )
        self.revalidator = Revalidator(
            self._recheck, self._permissions.credential_digest, interval=good_for, grace=grace
        )
        self._failure_count, self._warned_at = 0, float("-inf")
        self._readable: WeakValueDictionary[bytes, ReadableDags] = WeakValueDictionary()

    async def check_run(self, caller: Caller, key: RunKey) -> Access:
        """Return what a caller may see of a run. Whether it exists is not told.

        Raises:
            AirflowRefused: He may not read it (401, 403).
            RunNotFound: There is no such DAG.
            PermissionUnknown: Airflow does not answer.
        """
        return await self._check_run(caller, key)

    async def check_dag(self, caller: Caller, dag_id: str, *, output: bool = False) -> Access:
        """Return what a caller may see of the runs of a DAG.

        Raises:
            AirflowRefused: He may not see them (401, 403), or there is no such DAG (404).
            PermissionUnknown: Airflow does not answer.
        """
        return await self._check_dag(caller, dag_id, output=output)

    async def check_dags(self, caller: Caller) -> None:
        """Let a caller see the runs of all DAGs that he may read.

        Raises:
            AirflowRefused: He may not list runs (401, 403).
            PermissionUnknown: Airflow does not answer.
        """
        (await self._list_permission(caller)).raise_if_refused()

    def readable_dags(self, caller: Caller) -> ReadableDags:
        """Return what a caller may read; one object for all his streams."""
        identity = self._permissions.credential_digest(caller)
        found = self._readable.get(identity)
        if found is None:

            async def ask(reading: Resource) -> bool:
                asked = self._xcom_permission if reading.output else self._run_permission
                return (await asked(caller, reading.dag_id, anew=True)).is_granted

            async def list_dags() -> set[str]:
                return await self._list_dags(caller)

            found = self._readable[identity] = ReadableDags(
                ask, list_dags, good_for=self._good_for, max_wait=self._good_for + self._grace
            )
        return found

    def register_stream(
        self,
        caller: Caller,
        scope: StreamScope,
        access: Access,
        subscription: Subscription,
        expiring: OnTokenExpiring | None = None,
    ) -> StreamPermission:
        """Close a stream when its caller may not see it any more."""
        return self.revalidator.register(caller, scope, access, subscription, expiring)

    async def close(self) -> None:
        """Stop asking."""
        await self.revalidator.close()
        for readable in list(self._readable.values()):
            await readable.close()
        await self._permissions.close()

    async def _recheck(self, caller: Caller, scope: StreamScope) -> Access:
        """Ask what a caller may see, whatever was answered before."""
        if scope.run_id:
            return await self._check_run(caller, RunKey(scope.dag_id, scope.run_id), anew=True)
        if scope.dag_id:
            return await self._check_dag(caller, scope.dag_id, output=scope.output, anew=True)
        (await self._list_permission(caller, anew=True)).raise_if_refused()
        return ACCESS_WITHOUT_VALUES

    async def _check_run(self, caller: Caller, key: RunKey, *, anew: bool = False) -> Access:
        if DOT_SEGMENTS & set(key):
            # What stands for another path can't be asked for, by anybody.
            raise RunNotFound(*key)
        asked = (
            self._run_permission(caller, key.dag_id, anew=anew, run_id=key.run_id),
            self._xcom_permission(caller, key.dag_id, anew=anew),
        )
        runs, xcoms = await asyncio.gather(*asked)
        if runs.status == NOT_FOUND:
            raise RunNotFound(*key)
        return _combine_permissions(runs, xcoms)

    async def _check_dag(self, caller: Caller, dag_id: str, *, output: bool, anew: bool = False) -> Access:
        if not output:
            (await self._run_permission(caller, dag_id, anew=anew)).raise_if_refused()
            return ACCESS_WITHOUT_VALUES
        asked = self._run_permission(caller, dag_id, anew=anew), self._xcom_permission(caller, dag_id, anew=anew)
        return _combine_permissions(*await asyncio.gather(*asked))

    async def _run_permission(
        self, caller: Caller, dag_id: str, *, anew: bool = False, run_id: str = ""
    ) -> CachedPermission:
        """Ask whether a caller may read a DAG's runs: for one of them where one is known, which costs Airflow less."""

        async def ask() -> CachedPermission:
            if run_id:
                permit = await self._request_permission(caller, run_path(RunKey(dag_id, run_id)), RunBody)
                if permit.status != NOT_FOUND:
                    return permit
            return await self._request_permission(
                caller, f"/api/v2/dags/{quote(dag_id, safe='')}/dagRuns?{EMPTY_RUN_QUERY}", RunPage
            )

        return await self._permissions.get(caller, ("runs", dag_id), ask, anew=anew)

    async def _list_permission(self, caller: Caller, *, anew: bool = False) -> CachedPermission:
        return await self._permissions.get(
            caller,
            ("dags", ""),
            lambda: self._request_permission(caller, f"/api/v2/dags/~/dagRuns?{EMPTY_RUN_QUERY}", RunPage),
            anew=anew,
        )

    async def _list_dags(self, caller: Caller) -> set[str]:
        """List the DAGs that a caller may read, also those that are not in any file any more."""
        found: set[str] = set()
        while True:
            path = f"/api/v2/dags?limit={DAGS_PER_PAGE}&offset={len(found)}&order_by=dag_id&exclude_stale=false"
            async with self._permissions.request_limit:
                answer = await self._get(caller, path, DagPage)
            if answer.status in DEFAULT_CHALLENGES:
                raise AirflowRefused(answer.detail, answer.status)
            if answer.body is None:
                raise self._log_failure(f"Airflow answered {answer.status} to the question which DAGs you may read")
            page = {dag.dag_id for dag in answer.body.dags}
            if page <= found:
                return found
            found |= page

    async def _xcom_permission(self, caller: Caller, dag_id: str, *, anew: bool = False) -> CachedPermission:
        path = f"{run_path(RunKey(dag_id, '~'))}/taskInstances/~/xcomEntries?{EMPTY_XCOM_QUERY}"
        return await self._permissions.get(
            caller,
            ("xcoms", dag_id),
            lambda: self._request_permission(caller, path, XComPage),
            anew=anew,
        )

    async def _request_permission(self, caller: Caller, path: str, shape: type[msgspec.Struct]) -> CachedPermission:
        """Ask for something, to see whether Airflow tells it.

        Args:
            caller: With whose credential.
            path: What is asked for.
            shape: What the answer must be; the login page of some proxy is not.

        Raises:
            PermissionUnknown: Nothing can be concluded from what came back.
        """
        answer = await self._get(caller, path, shape)
        if answer.body is not None:
            return CachedPermission(OK)
        if answer.status in DEFAULT_CHALLENGES:
            challenge = answer.challenge or DEFAULT_CHALLENGES[answer.status]
            return CachedPermission(answer.status, answer.detail, challenge)
        raise self._log_failure(f"Airflow answered {answer.status} to the question whether you may read this")

    async def _get(self, caller: Caller, path: str, shape: type[_Body]) -> AirflowAnswer[_Body]:
        try:
            return await AirflowApi(self._client, caller.headers).get(shape, path, TIMEOUT_SECONDS)
        except AirflowNotResponding as error:
            raise self._log_failure(str(error)) from error

    def _log_failure(self, why: str) -> PermissionUnknown:
        """Return the error where Airflow does not answer; of many such the log has one now and then."""
        now = time.monotonic()
        self._failure_count += 1
        if now - self._warned_at >= WARNING_INTERVAL_SECONDS:
            log.warning(
                "Airflow can't be asked who may read what, %d times since this was told last: %s",
                self._failure_count,
                why,
            )
            self._warned_at, self._failure_count = now, 0
        return PermissionUnknown(why)


def _combine_permissions(runs: CachedPermission, xcoms: CachedPermission) -> Access:
    """Return what somebody may see, of whom Airflow has said two things.

    Raises:
        AirflowRefused: He may not read runs, or his credential has become good for nothing between the two.
    """
    runs.raise_if_refused()
    if xcoms.status == UNAUTHENTICATED:
        xcoms.raise_if_refused()
    return Access(can_read_values=xcoms.is_granted)
