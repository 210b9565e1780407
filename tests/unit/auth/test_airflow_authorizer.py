from __future__ import annotations

import httpx
import pytest

from stream_server.auth.airflow_authorizer import AirflowAuthorizer
from stream_server.auth.authorizer import Caller
from stream_server.domain.run_state import RunKey
from stream_server.errors import RunNotFound

# Nothing listens there: a request would raise `PermissionUnknown`.
NO_AIRFLOW = "http://127.0.0.1:9"


@pytest.mark.parametrize("key", [RunKey("..", "r1"), RunKey("chat", ".."), RunKey(".", "r1")])
async def test_dot_segments_are_no_run_and_do_not_reach_airflow(key: RunKey) -> None:
    async with httpx.AsyncClient(base_url=NO_AIRFLOW, trust_env=False) as client:
        authorizer = AirflowAuthorizer(client, good_for=1, grace=1)
        with pytest.raises(RunNotFound):
            await authorizer.check_run(Caller.from_token("token-of-ada"), key)
