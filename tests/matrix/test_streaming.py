"""Output of tasks in `dag.test()` of each version of Airflow, streamed from its database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from matrix.streaming_checks import running_server_on
from matrix.upgraded_databases import VERSIONS, UpgradedDatabases
from matrix.versioned_sql import VersionedSql
from stream_server.cli.demo.airflow import dag_bundle_setting
from stream_server.domain.run_state import RunKey
from support.authoring_forms import DAGS
from support.streaming_forms import EXPECTED_OUTPUT, EXPECTED_RESULTS, output_values
from support.streams import Frame, sse

SCRIPT = Path(__file__).with_name("run_dags.py")

FORMS = (*EXPECTED_OUTPUT, "stream_mapped", "stream_retry", "stream_tokens", "stream_plain_fails")


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_form_emits_output_and_returns(version: str, databases: UpgradedDatabases, tmp_path: Path) -> None:
    url, output = await databases.copy_of(version), tmp_path / "runs.json"
    await databases.run(
        version,
        url,
        SCRIPT,
        *(str(output), str(DAGS), *FORMS),
        AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST=dag_bundle_setting([DAGS]),
    )
    runs = {dag_id: RunKey(dag_id, run_id) for dag_id, run_id in json.loads(output.read_text()).items()}
    async with running_server_on(url) as server:
        frames = {dag_id: await frames_for_late_client(server.url, key) for dag_id, key in runs.items()}
    assert {dag_id: values(frames[dag_id]) for dag_id in EXPECTED_OUTPUT} == EXPECTED_OUTPUT
    assert [frame["index"] for frame in output_values(frames["stream_text"])] == [0, 1, 2]
    assert {dag_id: next(iter(results(frames[dag_id]).values())) for dag_id in EXPECTED_RESULTS} == EXPECTED_RESULTS

    mapped = {index: values(frames["stream_mapped"], index) for index in (0, 1)}
    assert mapped == {0: ["a", "b"], 1: ["c", "d"]}
    assert results(frames["stream_mapped"]) == {"each": ["ab", "cd"]}

    words = [f"2.{number} " for number in range(10)]
    assert values(frames["stream_retry"]) == words
    assert results(frames["stream_retry"]) == {"half": "".join(words)}

    assert [one["number"] for one in values(frames["stream_tokens"])] == list(range(200))

    assert values(frames["stream_plain_fails"]) == ["last ", "words"]

    async with VersionedSql.open(url) as airflow:
        rows = await airflow.connection.fetch("SELECT dag_id FROM xcom WHERE key = 'stream_server_output'")
        losses = await airflow.connection.fetchval("SELECT is_called FROM stream_server.losses")
    assert sorted({row["dag_id"] for row in rows}) == sorted(FORMS)
    assert not losses


async def frames_for_late_client(url: str, key: RunKey) -> list[Frame]:
    """Return the frames that a client gets that joins after the end, and watches the task with output.

    Before 3.1 `dag.test()` stores no structure of the DAG, so the result tasks are unknown.
    """
    async with sse(url, key, "?until=run") as events:
        task_id = output_values(await events.rest())[0]["task_id"]
    async with sse(url, key, f"?result={task_id}") as events:
        return await events.rest()


def values(frames: list[Frame], map_index: int = -1) -> list[Any]:
    return [frame["value"] for frame in output_values(frames) if frame["map_index"] == map_index]


def results(frames: list[Frame]) -> dict[str, object]:
    (result,) = [frame for frame in frames if frame["type"] == "result"]
    return dict(result["results"])
