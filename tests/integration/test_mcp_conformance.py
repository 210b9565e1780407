"""The official conformance tests of the Model Context Protocol, in both revisions."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.mcp_conformance import run_scenarios, serve_tools
from support.server import RunningServer

PROMPTS = "There are no prompts: DAGs are tools"
COMPLETIONS = "There are no completions: values of params are not known"
LOGGING = "What a run reports is sent as progress; logs stay in Airflow"
SAMPLING = "A DAG asks people, and no model of the client"
MEDIA = "The result of a run is a JSON value: no image, audio or embedded resource"
RESOURCES = "Resources have URIs of runs, and are read as JSON"
SUBSCRIBE = "Runs are watched with the revision that has subscriptions/listen"
SCHEMA = "A tool has a schema for each param, and no definitions that they share"
STATELESS = "An answer without the state of a request names no run"
TASKS = "Each tool can be called without tasks, and with the extension each becomes one at once"
NO_PROTOCOL_ERROR = "A run that fails is a result with isError"
HEADERS = "No param is sent in a header"
PROBES = "The tools that probe a server's own requests and logs can't be DAGs"
CLOSING = "Streams are closed only when the server stops"

FAILING = {
    "2025-11-25": {
        "completion-complete: completion-complete": COMPLETIONS,
        "json-schema-2020-12: json-schema-2020-12-tool-found": SCHEMA,
        "logging-set-level: logging-set-level": LOGGING,
        "prompts-get-embedded-resource: prompts-get-embedded-resource": PROMPTS,
        "prompts-get-simple: prompts-get-simple": PROMPTS,
        "prompts-get-with-args: prompts-get-with-args": PROMPTS,
        "prompts-get-with-image: prompts-get-with-image": PROMPTS,
        "prompts-list: prompts-list": PROMPTS,
        "resources-read-binary: resources-read-binary": RESOURCES,
        "resources-read-text: resources-read-text": RESOURCES,
        "resources-subscribe: resources-subscribe": SUBSCRIBE,
        "resources-templates-read: resources-templates-read": RESOURCES,
        "resources-unsubscribe: resources-unsubscribe": SUBSCRIBE,
        "tools-call-audio: tools-call-audio": MEDIA,
        "tools-call-embedded-resource: tools-call-embedded-resource": MEDIA,
        "tools-call-image: tools-call-image": MEDIA,
        "tools-call-mixed-content: tools-call-mixed-content": MEDIA,
        "tools-call-sampling: tools-call-sampling": SAMPLING,
        "tools-call-with-logging: tools-call-with-logging": LOGGING,
    },
    "2026-07-28": {
        "caching: sep-2549-prompts-list-caching-hints": PROMPTS,
        "completion-complete: completion-complete": COMPLETIONS,
        "http-custom-header-server-validation: sep-2243-server-decode-base64": HEADERS,
        "http-custom-header-server-validation: sep-2243-server-no-xmcp-tool": HEADERS,
        "http-custom-header-server-validation: sep-2243-server-reject-invalid-param-chars": HEADERS,
        "http-custom-header-server-validation: sep-2243-server-reject-param-mismatch": HEADERS,
        "http-custom-header-server-validation: sep-2243-server-validate-param-match": HEADERS,
        "input-required-result-basic-list-roots: sep-2322-list-roots-incomplete": SAMPLING,
        "input-required-result-basic-sampling: sep-2322-sampling-incomplete": SAMPLING,
        "input-required-result-capability-check: sep-2322-respect-client-capabilities": SAMPLING,
        "input-required-result-ignore-extra-params: sep-2322-ignore-unexpected-params": STATELESS,
        "input-required-result-multiple-input-requests: sep-2322-multiple-inputs-incomplete": SAMPLING,
        "input-required-result-non-tool-request: sep-2322-non-tool-incomplete": PROMPTS,
        "json-schema-2020-12: json-schema-2020-12-tool-found": SCHEMA,
        "prompts-get-embedded-resource: prompts-get-embedded-resource": PROMPTS,
        "prompts-get-simple: prompts-get-simple": PROMPTS,
        "prompts-get-with-args: prompts-get-with-args": PROMPTS,
        "prompts-get-with-image: prompts-get-with-image": PROMPTS,
        "prompts-list: prompts-list": PROMPTS,
        "resources-read-binary: resources-read-binary": RESOURCES,
        "resources-read-text: resources-read-text": RESOURCES,
        "resources-templates-read: resources-templates-read": RESOURCES,
        "server-stateless: sep-2575-http-server-no-independent-requests-on-stream": PROBES,
        "server-stateless: sep-2575-missing-capability-http-400": PROBES,
        "server-stateless: sep-2575-server-no-log-without-loglevel": PROBES,
        "server-stateless: sep-2575-server-rejects-undeclared-capability": PROBES,
        "tasks-lifecycle: sep-2663-tasks-get-status-failed": NO_PROTOCOL_ERROR,
        "tasks-mrtr-composition: sep-2663-mrtr-synchronous-before-task-creation": TASKS,
        "tasks-required-task-error: sep-2663-server-returns-missing-capability-when-required": TASKS,
        "tools-call-audio: tools-call-audio": MEDIA,
        "tools-call-embedded-resource: tools-call-embedded-resource": MEDIA,
        "tools-call-image: tools-call-image": MEDIA,
        "tools-call-mixed-content: tools-call-mixed-content": MEDIA,
    },
}
"""Checks that do not apply, by revision, and why. One that passes must be removed."""


@pytest.mark.parametrize("revision", FAILING)
async def test_scenarios_pass(
    trigger_server: RunningServer, airflow: AirflowSql, stub: AirflowStub, tmp_path: Path, revision: str
) -> None:
    await serve_tools(stub, airflow, trigger_server.hub.is_watched)
    errors = await run_scenarios(f"{trigger_server.url}/mcp", revision, tmp_path)
    expected = FAILING[revision]
    unexpected = [f"{check}: {text}" for check, text in errors.items() if check not in expected]
    assert unexpected == []
    assert expected.keys() - errors.keys() == set(), "these checks pass"
