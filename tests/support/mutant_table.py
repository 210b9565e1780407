"""Faults that the suite must notice: `MUTANTS`. `support.mutants` makes each of them in a copy of the project."""

from __future__ import annotations

from typing import NamedTuple

DOMAIN = ("tests/unit/domain", "tests/unit/hub")
HUB = ("tests/unit/hub", "tests/unit/domain/test_replay.py")
TAIL = (
    "tests/unit/journal",
    "tests/integration/test_notify.py",
    "tests/integration/test_gaps.py",
)
SCENARIOS = ("tests/integration/test_scenarios.py",)
TRIGGERS = (
    "tests/integration/test_trigger_safety.py",
    "tests/integration/test_install.py",
    "tests/integration/test_notify.py",
    *SCENARIOS,
)
AUTH = ("tests/unit/auth", "tests/integration/test_auth.py", "tests/integration/test_auth_streams.py")


class Mutant(NamedTuple):
    """One fault."""

    name: str
    path: str
    """Below the project."""

    old: str
    """Text that the file has exactly once."""

    new: str
    tests: tuple[str, ...]
    """The tests that must notice it."""


def _domain(name: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, f"stream_server/domain/{module}.py", old, new, DOMAIN)


def _hub(name: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, f"stream_server/hub/{module}.py", old, new, HUB)


def _journal(name: str, module: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(name, f"stream_server/journal/{module}", old, new, tests or TAIL)


def _auth(name: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, f"stream_server/auth/{module}.py", old, new, AUTH)


MUTANTS = (
    _domain(
        "shrunk mapping waits for removed instances",
        "mapped_result",
        'len(instances) - len(instances.by_state.get("removed", ()))',
        "len(instances)",
    ),
    _domain("skipped instance is waited for", "evidence", "count = len(values) + len(skipped)", "count = len(values)"),
    _domain("timeout counts as mapped over nothing", "interruption", " and not has_timed_out(run)", ""),
    _domain(
        "skip by a person is left out", "interruption", "run.info.end_date - instance.end_date < LONGEST_MARK", "False"
    ),
    _domain(
        "skip with an end date counts as mapped over nothing",
        "mapped_result",
        " or instance.end_date is not None:\n        return False",
        ":\n        return False",
    ),
    _domain(
        "value of a retried try is kept",
        "run_state",
        "in _PUSH_KEEPING_STATES and transition.try_number == before.try_number",
        "in _PUSH_KEEPING_STATES",
    ),
    _domain(
        "value of a killed task counts", "run_state", "if instance.state in _PUSHING_STATES:", "if instance.state:"
    ),
    _domain(
        "output of an older try counts", "run_state", "return instance.try_number == frame.try_number", "return True"
    ),
    _domain("expansion keeps the instance -1", "run_state", "            instances.remove(-1)\n", "            pass\n"),
    _domain(
        "confirm=success sends a pushed value",
        "outcome",
        'needs_success = options.confirm == "success"\n    if not',
        "needs_success = False\n    if not",
    ),
    _domain(
        "failed run without a failure",
        "outcome",
        'if run.info.state == "failed":\n        return',
        "if False:\n        return",
    ),
    _domain("changed value is not retracted", "outcome_tracker", "and decision.versions == self.result_versions", ""),
    _domain(
        "cleared run is not reset",
        "outcome_tracker",
        "is_cleared or not self._is_still_valid",
        "not self._is_still_valid",
    ),
    _domain(
        "known result is not sent again after a retraction", "outcome_tracker", "self.result_versions = ()", "pass"
    ),
    _domain("until=result ends with the run", "outcome_tracker", 'self.options.until == "result"', "False"),
    _domain(
        "replaced value is replayed", "replay", "return answers and row.xcom_key == RETURN_VALUE_KEY", "return False"
    ),
    _domain("rows that follow live are replayed", "replay", "if position.is_visible(row.txid)]", "]"),
    _domain(
        "run of the same id continues",
        "replay",
        "if not run.is_deleted and not before_creation and any(",
        "if False and any(",
    ),
    _domain(
        "unexpanded task never runs",
        "prediction",
        "        if not ends & Ends.RUN:\n            # Airflow removes",
        "        if True:\n            # Airflow removes",
    ),
    _domain(
        "skipped leaf fails the run", "prediction", "if not ends & ANY & ~FAILURE))", "if not ends & Ends.SUCCESS))"
    ),
    _hub(
        "rows that the load saw are applied again",
        "run_feed",
        "if not self._loaded_at.is_visible(transition.txid)]",
        "]",
    ),
    _hub(
        "resumed client gets its result again",
        "subscriber_group",
        "self.tracker.last_frames(token.sent_outcome)",
        "self.tracker.last_frames()",
    ),
    _hub(
        "late client gets old first frames",
        "subscriber_group",
        "        self._initial_wires = None\n        if",
        "        if",
    ),
    _hub("slow client is never disconnected", "subscription", "> self._limit and not", "> 10**12 and not"),
    _hub("shared queue is changed", "subscription", "if self._is_shared or not isinstance", "if not isinstance"),
    Mutant(
        "chunks are not redacted",
        "stream_server/hub/redaction.py",
        "return replace(frame, value=UNSET, withheld=True)",
        "return frame",
        ("tests/unit/hub/test_redaction.py",),
    ),
    Mutant(
        "cursor of a lost history is accepted",
        "stream_server/hub/hub.py",
        " and not await self._source.is_foreign(position)",
        "",
        (*HUB, "tests/integration/test_resume.py", "tests/integration/test_failover.py"),
    ),
    _journal("dropped write resyncs once only", "gaps.py", "            self.record_gap(snapshot)\n", ""),
    _journal(
        "notification during a read is lost",
        "tail.py",
        "        self._wake.clear()\n        started",
        "        started",
    ),
    _journal("tail goes idle while it is busy", "pacing.py", " and not self.is_busy", ""),
    _journal(
        "pruned rows are not missed",
        "reader.py",
        'first["pruned_to"] is not None and not position',
        "False and not position",
    ),
    _journal(
        "transactions in progress are left out",
        "sql/queries.sql",
        "       OR txid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))\n) AS j ON true",
        ") AS j ON true",
        "tests/integration/test_scenarios.py",
        "tests/integration/test_lossless.py",
    ),
    _journal(
        "trigger ignores a change of the try",
        "queries.py",
        " OR coalesce(n.try_number OPERATOR(pg_catalog.<>) o.try_number, false)",
        "",
        *TRIGGERS,
    ),
    _journal(
        "trigger ignores a cleared run",
        "sql/functions.sql",
        "IS NOT DISTINCT FROM OLD.state AND NEW.clear_number = OLD.clear_number THEN",
        "IS NOT DISTINCT FROM OLD.state THEN",
        *TRIGGERS,
    ),
    _journal(
        "deletion of a run is recorded for its instances too",
        "sql/functions.sql",
        "set_config('stream_server.deletes_runs', 'on', true)",
        "set_config('stream_server.deletes_runs', 'off', true)",
        *TRIGGERS,
    ),
    _journal(
        "deletion of a run hides later deletions of instances",
        "sql/functions.sql",
        "set_config('stream_server.deletes_runs', 'off', true)",
        "set_config('stream_server.deletes_runs', 'on', true)",
        *TRIGGERS,
    ),
    _journal(
        "failed trigger fails the transaction",
        "sql/exception_handler.sql",
        "    RETURN NULL;",
        "    RAISE;",
        *TRIGGERS,
    ),
    _auth(
        "refusals are kept as long as permissions",
        "permission_cache",
        "else self._refused_for)",
        "else self._good_for)",
    ),
    _auth("missing DAG is cached", "permission_cache", "if permission.status != NOT_FOUND:", "if True:"),
    _auth(
        "permission is valid from its answer on",
        "permission_cache",
        "requested_at = self._clock()\n            permission = await ask()",
        "permission = await ask()\n            requested_at = self._clock()",
    ),
    _auth(
        "ticket is good for any path",
        "tickets",
        "encrypt(nonce, plaintext, _associated_data(paths))",
        "encrypt(nonce, plaintext, b'')",
    ),
    _auth(
        "streams of a caller are not counted",
        "rate_limits",
        "if self._streams[caller] >= self._max_streams:",
        "if False:",
    ),
    _auth("dot segments reach Airflow", "airflow_authorizer", "if DOT_SEGMENTS & set(key):", "if False:"),
)
