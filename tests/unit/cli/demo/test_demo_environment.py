from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from stream_server.cli.demo import airflow
from stream_server.cli.demo.stack import example_dags

URL = "postgresql://airflow@127.0.0.1:5432/airflow"


def environment(*dags: Path) -> dict[str, str]:
    return airflow.airflow_environment(Path("/run/airflow"), URL, port=8080, dags=dags, bytecode=Path("/cache"))


def test_nothing_of_the_users_own_airflow_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", "/home/user/dags")
    monkeypatch.setenv("AIRFLOW_CONFIG", "/home/user/airflow.cfg")
    monkeypatch.setenv("KEPT", "yes")
    made = environment()
    assert made["KEPT"] == "yes"
    assert made["AIRFLOW_HOME"] == "/run/airflow"
    assert not {"AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW_CONFIG"} & set(made)


def test_who_wants_no_bytecode_beside_the_sources_still_has_it_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    made = environment()
    assert "PYTHONDONTWRITEBYTECODE" not in made
    assert made["PYTHONPYCACHEPREFIX"] == "/cache"
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE")
    assert "PYTHONPYCACHEPREFIX" not in environment()


def test_all_processes_reach_the_same_api_server() -> None:
    assert environment()["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8080/execution/"


def test_each_folder_is_a_bundle_of_its_own() -> None:
    bundles = json.loads(environment(Path("/a"), Path("/b"))["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"])
    assert [(bundle["name"], bundle["kwargs"]["path"]) for bundle in bundles] == [("dags-1", "/a"), ("dags-2", "/b")]


def test_secrets_are_new_each_time_and_of_the_right_form() -> None:
    one, two = environment(), environment()
    assert one["AIRFLOW__API_AUTH__JWT_SECRET"] != two["AIRFLOW__API_AUTH__JWT_SECRET"]
    assert len(base64.urlsafe_b64decode(one["AIRFLOW__CORE__FERNET_KEY"])) == 32


def test_passwords_are_not_shown() -> None:
    assert airflow.ADMIN.password not in repr(airflow.ADMIN).replace("username='admin'", "")


def test_every_example_is_a_dag_named_after_its_file(tmp_path: Path) -> None:
    copied = shutil.copytree(example_dags(), tmp_path / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    for path in copied.iterdir():
        assert path.suffix == ".py"
        assert f"\ndef {path.stem}():" in path.read_text()
