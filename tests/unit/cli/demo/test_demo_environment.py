from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from stream_server.cli.demo import airflow
from stream_server.cli.demo.stack import example_dags

URL = "postgresql://airflow@127.0.0.1:5432/airflow"


def make_environment(*dags: Path) -> dict[str, str]:
    return airflow.airflow_environment(Path("/run/airflow"), URL, port=8080, dags=dags, bytecode=Path("/cache"))


def test_variables_of_another_airflow_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", "/home/user/dags")
    monkeypatch.setenv("AIRFLOW_CONFIG", "/home/user/airflow.cfg")
    monkeypatch.setenv("KEPT", "yes")
    environment = make_environment()
    assert environment["KEPT"] == "yes"
    assert environment["AIRFLOW_HOME"] == "/run/airflow"
    assert not {"AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW_CONFIG"} & set(environment)


def test_bytecode_is_kept_in_another_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    environment = make_environment()
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert environment["PYTHONPYCACHEPREFIX"] == "/cache"
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE")
    assert "PYTHONPYCACHEPREFIX" not in make_environment()


def test_execution_api_is_the_api_server() -> None:
    assert make_environment()["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8080/execution/"


def test_each_folder_is_a_bundle() -> None:
    bundles = json.loads(make_environment(Path("/a"), Path("/b"))["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"])
    assert [(bundle["name"], bundle["kwargs"]["path"]) for bundle in bundles] == [("dags-1", "/a"), ("dags-2", "/b")]


def test_secrets_are_random() -> None:
    one, two = make_environment(), make_environment()
    assert one["AIRFLOW__API_AUTH__JWT_SECRET"] != two["AIRFLOW__API_AUTH__JWT_SECRET"]
    assert len(base64.urlsafe_b64decode(one["AIRFLOW__CORE__FERNET_KEY"])) == 32


def test_repr_has_no_password() -> None:
    assert airflow.ADMIN.password not in repr(airflow.ADMIN).replace("username='admin'", "")


def test_examples_have_the_names_of_their_files(tmp_path: Path) -> None:
    copied = shutil.copytree(example_dags(), tmp_path / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    for path in copied.iterdir():
        assert path.suffix == ".py"
        assert f"\ndef {path.stem}():" in path.read_text()
