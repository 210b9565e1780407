"""Airflow's own statements, issued by its own models, against any database.

Run as a script, `python -m support.airflow_orm MAPPED`, it is a process that reads database URLs from standard input,
line by line, runs all transactions in each, and writes a line of JSON: what was committed, or the exception.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from airflow.models.dag import DagModel
from airflow.models.dag_version import DagVersion
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance, clear_task_instances
from airflow.models.xcom import XComModel
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from sqlalchemy import Engine, create_engine, func, select, update
from sqlalchemy.orm import Session

from stream_server.domain.transition import OUTPUT_KEY


def make_dag(mapped: int) -> Any:  # an Airflow class that is not typed
    """Return a DAG with `mapped` instances of one task, as the scheduler reads it."""
    with DAG("orm", schedule=None) as dag:
        docs = [str(number) for number in range(mapped)]
        EmptyOperator(task_id="first") >> EmptyOperator.partial(task_id="mapped").expand(doc=docs)
    return DagSerialization.from_dict(DagSerialization.to_dict(dag))


class AirflowTransactions:
    """What Airflow does with one run. Each method is one transaction."""

    def __init__(self, engine: Engine, dag: Any) -> None:  # an Airflow class that is not typed
        self._engine = engine
        self._dag = dag
        self._steps: list[Callable[[Session], None]] = [
            self.add_version,
            self.create_run,
            self.schedule,
            self.start,
            self.heartbeat,
            self.push_values,
            self.finish,
        ]

    def run_all(self) -> dict[str, Any]:
        """Run all transactions; return what was committed."""
        for step in self._steps:
            with Session(self._engine) as session, session.begin():
                step(session)
        committed: dict[str, Any] = {}
        with Session(self._engine) as session:
            states = select(TaskInstance.state, func.count()).group_by(TaskInstance.state)
            committed["finished"] = {str(state): count for state, count in session.execute(states)}
            returned = select(XComModel.value).where(XComModel.key == "return_value")
            committed["value"] = session.scalars(returned).one()
        with Session(self._engine) as session, session.begin():
            clear_task_instances(list(session.scalars(select(TaskInstance))), session)
        with Session(self._engine) as session, session.begin():
            run = session.scalars(select(DagRun)).one()
            committed["cleared"] = [str(run.state), run.clear_number]
            # Its task instances and XComs are deleted by cascade.
            session.delete(run)
        with Session(self._engine) as session:
            tables = (DagRun, TaskInstance, XComModel)
            committed["left"] = [session.scalar(select(func.count()).select_from(table)) for table in tables]
        return committed

    def add_version(self, session: Session) -> None:
        session.add(DagBundleModel(name="bundle"))
        session.flush()
        session.add(DagModel(dag_id="orm", bundle_name="bundle", is_paused=False, timetable_type="NullTimetable"))
        session.flush()
        session.add(DagVersion(dag_id="orm", version_number=1, bundle_name="bundle"))

    def create_run(self, session: Session) -> None:
        """Insert the run and its task instances."""
        version = session.scalars(select(DagVersion)).one()
        run = DagRun(
            dag_id="orm",
            run_id="run",
            run_type=DagRunType.MANUAL,
            state=DagRunState.QUEUED,
            triggered_by=DagRunTriggeredByType.TEST,
            run_after=datetime.now(timezone.utc),
        )
        run.dag = self._dag
        run.created_dag_version_id = version.id
        session.add(run)
        session.flush()
        run.verify_integrity(session=session, dag_version_id=version.id)

    def schedule(self, session: Session) -> None:
        """Schedule all instances at once, as `DagRun.schedule_tis` does: empty tasks would succeed in it."""
        session.execute(
            update(TaskInstance)
            .where(TaskInstance.id.in_(list(session.scalars(select(TaskInstance.id)))))
            .values(state=TaskInstanceState.SCHEDULED, try_number=TaskInstance.try_number + 1)
            .execution_options(synchronize_session=False)
        )

    def start(self, session: Session) -> None:
        """Change the state of all instances in one statement."""
        session.execute(update(TaskInstance).values(state=TaskInstanceState.RUNNING))

    def heartbeat(self, session: Session) -> None:
        session.execute(update(TaskInstance).values(last_heartbeat_at=datetime.now(timezone.utc)))

    def push_values(self, session: Session) -> None:
        """Set a value twice: a delete and an insert each. Output of a task does the same."""
        for body in ({"try_number": 1, "index": 0, "items": [{"chunk": "word"}]}, "nonsense", "x" * 1_000_000):
            XComModel.set(OUTPUT_KEY, body, dag_id="orm", task_id="first", run_id="run", session=session)
        for value in ("one", "other"):
            XComModel.set("return_value", value, dag_id="orm", task_id="first", run_id="run", session=session)

    def finish(self, session: Session) -> None:
        """Change ORM objects, which SQLAlchemy writes one by one."""
        for one in session.scalars(select(TaskInstance)):
            one.state = TaskInstanceState.SUCCESS
        session.scalars(select(DagRun)).one().state = DagRunState.SUCCESS


@contextmanager
def connected(url: str) -> Iterator[Engine]:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg2://", 1))
    try:
        yield engine
    finally:
        engine.dispose()


def main() -> None:
    """Write a line for each line of standard input."""
    warnings.simplefilter("ignore")
    dag = make_dag(int(sys.argv[1]))
    for line in sys.stdin:
        try:
            with connected(line.strip()) as engine:
                answer: dict[str, Any] = {"committed": AirflowTransactions(engine, dag).run_all()}
        except Exception as error:  # noqa: BLE001 # whatever Airflow raises is the answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        print("\n" + json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
