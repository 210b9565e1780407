"""The permission for human input is requested for each DAG: no list of Airflow's renews it."""

from __future__ import annotations

from stream_server.auth.readable_dags import MAX_DIRECT_REQUESTS, ReadableDags
from stream_server.hub.filters import Resource


async def test_no_list_renews_the_permission_for_human_input() -> None:
    clock, requests = [0.0], list[Resource]()

    async def check(resource: Resource) -> bool:
        requests.append(resource)
        return True

    async def list_dags() -> set[str]:
        raise AssertionError("a list has no permission for human input")

    dags = ReadableDags(check, list_dags, good_for=30, max_wait=330, clock=lambda: clock[-1])
    inputs = {Resource(f"dag{number}", inputs=True) for number in range(2 * MAX_DIRECT_REQUESTS)}
    for now in (100.0, 200.0):
        clock.append(now)
        assert await dags.filter_readable(inputs) == inputs
    assert len(requests) == 2 * len(inputs)
    await dags.close()
