"""`--auth airflow`: Airflow decides. It is asked with the caller's own credential, for resources that do not exist.

Airflow's permissions are those of a DAG (`requires_access_dag` takes only `dag_id` from a request), so one answer is
valid for all its runs.
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
from typing_extensions import override

from stream_server.auth.airflow_api import EMPTY_RUN_LIST, AirflowAnswer, AirflowApi, run_path
from stream_server.auth.airflow_bodies import DagPage, RequestPage, RunBody, RunPage, XComPage
from stream_server.auth.authorizer import (
    ACCESS_WITHOUT_VALUES,
    Access,
    Authorizer,
    Caller,
    Grant,
    OnTokenExpiring,
    StreamScope,
)
from stream_server.auth.permission_cache import CachedPermission, PermissionCache
from stream_server.auth.readable_dags import ReadableDags
from stream_server.auth.revalidation import Revalidator, StreamPermission
from stream_server.domain.run_state import RunKey
from stream_server.errors import AirflowNotResponding, AirflowRefused, PermissionUnknown, RunNotFound
from stream_server.hub.filters import Resource
from stream_server.hub.subscription import Subscription

log = logging.getLogger(__name__)

REFUSAL_LIFETIME_SHARE = 1 / 3
"""How long a refusal is valid, as a part of the time for which a permission is."""

MAX_PERMISSIONS = 20_000
"""Permissions in the cache."""

DAGS_PER_PAGE = 100
"""DAGs in one answer: the most that Airflow returns by default."""

MAX_DAG_PAGES = 1000
"""Answers that are requested for one list of DAGs. An Airflow that sends more is not expected to end."""

MAX_CONCURRENT_REQUESTS = 8

TIMEOUT_SECONDS = 10.0
"""For each step of a request."""

WARNING_INTERVAL_SECONDS = 10.0
"""How often it is logged that Airflow does not answer, at most."""

DOT_SEGMENTS = {".", ".."}

EMPTY_XCOM_QUERY = "limit=1&xcom_key="
"""Matches no XComs, which PostgreSQL finds out by an index. Without a key it counts all XComs of the DAG."""

EMPTY_REQUEST_QUERY = "limit=1&task_id=~"
"""Matches no requests: no task has that id."""

UNAUTHENTICATED, FORBIDDEN, NOT_FOUND = 401, 403, 404

DEFAULT_CHALLENGES = {UNAUTHENTICATED: "Bearer", FORBIDDEN: None, NOT_FOUND: None}
"""Statuses of refusals, and the challenge where Airflow sends none (RFC 9110 section 15.5.2)."""

_Body = TypeVar("_Body", bound=msgspec.Struct)


class AirflowAuthorizer(Authorizer):
    """Asks Airflow.

    Args:
        client: An open client whose base URL is Airflow's.
        good_for: Seconds for which an answer is valid, and after which a live stream is revalidated.
        grace: Seconds for which streams continue while Airflow does not answer.
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
        # One object for all streams of a caller, for as long as there are any.
        self._readable: WeakValueDictionary[bytes, ReadableDags] = WeakValueDictionary()

    @override
    async def check_run(self, caller: Caller, key: RunKey, *, anew: bool = False) -> Access:
        """Return what a caller may see of a run, whether or not the run exists. `anew` ignores the cache.

        Raises:
            AirflowRefused: The caller may not read it (401, 403).
            RunNotFound: There is no such DAG.
            PermissionUnknown: Airflow does not answer.
        """
        if DOT_SEGMENTS & set(key):
            # In a path these are resolved, so that Airflow would be asked about something else.
            raise RunNotFound(*key)
        runs, xcoms, inputs = await asyncio.gather(
            self._run_permission(caller, key.dag_id, anew=anew, run_id=key.run_id),
            self._xcom_permission(caller, key.dag_id, anew=anew),
            self._input_permission(caller, key.dag_id, anew=anew),
        )
        if runs.status == NOT_FOUND:
            raise RunNotFound(*key)
        return _combine_permissions(runs, xcoms, inputs)

    @override
    async def check_dag(
        self, caller: Caller, dag_id: str, *, output: bool = False, inputs: bool = False, anew: bool = False
    ) -> Access:
        """Return what a caller may see of the runs of a DAG. `anew` ignores the cache.

        Raises:
            AirflowRefused: The caller may not see them (401, 403), or there is no such DAG (404).
            PermissionUnknown: Airflow does not answer.
        """
        wanted = [self._run_permission(caller, dag_id, anew=anew)]
        wanted.append(self._xcom_permission(caller, dag_id, anew=anew) if output else _not_wanted())
        wanted.append(self._input_permission(caller, dag_id, anew=anew) if inputs else _not_wanted())
        return _combine_permissions(*await asyncio.gather(*wanted))

    @override
    async def check_dags(self, caller: Caller, *, anew: bool = False) -> None:
        """Raise unless a caller may list runs. `anew` ignores the cache.

        Raises:
            AirflowRefused: The caller may not (401, 403).
            PermissionUnknown: Airflow does not answer.
        """
        permission = await self._permissions.get(
            caller, ("dags", ""), lambda: self._request_permission(caller, EMPTY_RUN_LIST, RunPage), anew=anew
        )
        permission.raise_if_refused()

    @override
    def readable_dags(self, caller: Caller) -> ReadableDags:
        digest = self._permissions.credential_digest(caller)
        readable = self._readable.get(digest)
        if readable is None:

            async def ask(resource: Resource) -> bool:
                if resource.inputs:
                    return (await self._input_permission(caller, resource.dag_id, anew=True)).is_granted
                request = self._xcom_permission if resource.output else self._run_permission
                return (await request(caller, resource.dag_id, anew=True)).is_granted

            async def list_dags() -> set[str]:
                return await self._list_dags(caller)

            readable = self._readable[digest] = ReadableDags(
                ask, list_dags, good_for=self._good_for, max_wait=self._good_for + self._grace
            )
        return readable

    @override
    def register_stream(
        self, grant: Grant, subscription: Subscription, expiring: OnTokenExpiring | None = None
    ) -> StreamPermission:
        return self.revalidator.register(grant, subscription, expiring)

    async def close(self) -> None:
        """Cancel all requests."""
        await self.revalidator.close()
        for readable in list(self._readable.values()):
            await readable.close()
        await self._permissions.close()

    async def _recheck(self, caller: Caller, scope: StreamScope) -> Access:
        """Return what a caller may see, without the cache."""
        if scope.run_id:
            return await self.check_run(caller, RunKey(scope.dag_id, scope.run_id), anew=True)
        if scope.dag_id:
            return await self.check_dag(caller, scope.dag_id, output=scope.output, inputs=scope.inputs, anew=True)
        await self.check_dags(caller, anew=True)
        return ACCESS_WITHOUT_VALUES

    async def _run_permission(
        self, caller: Caller, dag_id: str, *, anew: bool = False, run_id: str = ""
    ) -> CachedPermission:
        """Return whether a caller may read the runs of a DAG. A request for one run, if known, costs Airflow less."""

        async def ask() -> CachedPermission:
            if run_id:
                permission = await self._request_permission(caller, run_path(RunKey(dag_id, run_id)), RunBody)
                if permission.status != NOT_FOUND:
                    return permission
            path = EMPTY_RUN_LIST.replace("~", quote(dag_id, safe=""))
            return await self._request_permission(caller, path, RunPage)

        return await self._permissions.get(caller, ("runs", dag_id), ask, anew=anew)

    async def _xcom_permission(self, caller: Caller, dag_id: str, *, anew: bool = False) -> CachedPermission:
        path = f"{run_path(RunKey(dag_id, '~'))}/taskInstances/~/xcomEntries?{EMPTY_XCOM_QUERY}"
        return await self._permissions.get(
            caller, ("xcoms", dag_id), lambda: self._request_permission(caller, path, XComPage), anew=anew
        )

    async def _input_permission(self, caller: Caller, dag_id: str, *, anew: bool = False) -> CachedPermission:
        """Return whether a caller may read the requests for human input of a DAG. Airflow 3.0 has none."""
        path = f"{run_path(RunKey(dag_id, '~'))}/hitlDetails?{EMPTY_REQUEST_QUERY}"
        return await self._permissions.get(
            caller, ("inputs", dag_id), lambda: self._request_permission(caller, path, RequestPage), anew=anew
        )

    async def _list_dags(self, caller: Caller) -> set[str]:
        """List the DAGs that a caller may read, also those whose file is gone.

        Raises:
            AirflowRefused: The caller may not list DAGs.
            PermissionUnknown: Airflow does not answer, or the list does not end.
        """
        found: set[str] = set()
        for _ in range(MAX_DAG_PAGES):
            path = f"/api/v2/dags?limit={DAGS_PER_PAGE}&offset={len(found)}&order_by=dag_id&exclude_stale=false"
            async with self._permissions.limit_request():
                answer = await self._get(caller, path, DagPage)
            if answer.status in DEFAULT_CHALLENGES:
                raise AirflowRefused(answer.detail, answer.status)
            if answer.body is None:
                raise self._log_failure(f"Airflow answered {answer.status} to the request for the DAGs you may read")
            page = {dag.dag_id for dag in answer.body.dags}
            if page <= found:
                return found
            found |= page
        raise self._log_failure(f"The list of DAGs you may read has not ended after {MAX_DAG_PAGES} pages")

    async def _request_permission(self, caller: Caller, path: str, shape: type[msgspec.Struct]) -> CachedPermission:
        """Request something, to see whether Airflow returns it.

        Args:
            caller: The caller, whose credential is sent.
            path: What is requested.
            shape: What the body must be. The login page of a proxy is not.

        Raises:
            PermissionUnknown: The answer is neither a grant nor a refusal.
        """
        answer = await self._get(caller, path, shape)
        if answer.body is not None:
            return CachedPermission(answer.status)
        if answer.status in DEFAULT_CHALLENGES:
            challenge = answer.challenge or DEFAULT_CHALLENGES[answer.status]
            return CachedPermission(answer.status, answer.detail, challenge)
        raise self._log_failure(f"Airflow answered {answer.status} to the request whether you may read this")

    async def _get(self, caller: Caller, path: str, shape: type[_Body]) -> AirflowAnswer[_Body]:
        try:
            return await AirflowApi(self._client, caller.headers).get(shape, path, TIMEOUT_SECONDS)
        except AirflowNotResponding as error:
            raise self._log_failure(str(error)) from error

    def _log_failure(self, why: str) -> PermissionUnknown:
        """Return the error for a request without a usable answer. Of many such, the log gets one now and then."""
        now = time.monotonic()
        self._failure_count += 1
        if now - self._warned_at >= WARNING_INTERVAL_SECONDS:
            log.warning(
                "Airflow can't be asked for permissions, %d times since the last such line: %s",
                self._failure_count,
                why,
            )
            self._warned_at, self._failure_count = now, 0
        return PermissionUnknown(why)


async def _not_wanted() -> CachedPermission:
    return CachedPermission(FORBIDDEN)


def _combine_permissions(runs: CachedPermission, xcoms: CachedPermission, inputs: CachedPermission) -> Access:
    """Return what a caller may see, from the permissions to read runs, XComs and requests for human input.

    Raises:
        AirflowRefused: The caller may not read runs, or the credential has expired between the two requests.
    """
    runs.raise_if_refused()
    for permission in (xcoms, inputs):
        if permission.status == UNAUTHENTICATED:
            permission.raise_if_refused()
    return Access(can_read_values=xcoms.is_granted, can_read_inputs=inputs.is_granted)
