"""Each form in which a DAG file can mark its result tasks, each in a DAG with another leaf that is not marked.

Read by Airflow 3.0 to 3.3; `support.authoring_forms` has the expected results.
"""

from __future__ import annotations

import sys

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG as AirflowDAG
from airflow.sdk import PokeReturnValue, task, task_group

from stream_server import authoring
from stream_server.authoring import DAG, dag, result_from, result_task

LONG = "answer_" + "x" * 120


@task
def answer() -> str:
    return "answer"


@task
def log() -> str:
    return "log"


with AirflowDAG("form_decorator"):

    @result_task
    @task(retries=1)
    def fetch() -> str:
        """Fetch the answer."""
        return "answer"

    fetch()
    log()

with AirflowDAG("form_task_result"):

    @task.result
    def fetch() -> str:
        return "answer"

    @task.result(task_id="other", retries=1)
    def fetch_other() -> dict[str, int]:
        return {"answer": 42}

    fetch()
    fetch_other()
    log()

with AirflowDAG("form_result_from") as plain_dag:
    answer()
    log()
    result_from(plain_dag, "answer")

with DAG("form_dag_result_from") as our_dag:
    returned = answer()
    log()
our_dag.result_from(returned)


@dag(result_task="answer")
def form_dag_argument():
    answer()
    log()


form_dag_argument()

with DAG("form_dag_arguments", result_task=["answer", "group.answer"], tags=["kept"]) as late_dag:
    log()

with late_dag:
    answer()

    @task_group
    def group():
        answer()

    group()


@dag
def form_returned():
    log()
    return answer()


form_returned()

with AirflowDAG("form_operator"):
    result_task(BashOperator(task_id="answer", bash_command="echo answer"))
    result_task(answer.override(task_id="called")())
    log()

with AirflowDAG("form_mapped"):

    @result_task
    @task
    def multiply(number: int, factor: int) -> int:
        return number * factor

    multiply.partial(factor=2).expand(number=[1, 2, 3])
    multiply.override(task_id="by_kwargs").expand_kwargs([{"number": 1, "factor": 1}])
    result_task(BashOperator.partial(task_id="echo").expand(bash_command=["echo 1", "echo 2"]))
    log()

with AirflowDAG("form_override"):
    marked = result_task(answer)
    marked.override(task_id="renamed", params={"other": 1}, doc_md="Own words.")()
    answer()

with AirflowDAG("form_group"):

    @task_group
    def doubled(number: int):
        @result_task
        @task
        def double(number: int) -> int:
            return 2 * number

        double(number)

    doubled.override(group_id="once")(1)
    doubled.override(group_id="each").expand(number=[1, 2])
    log()

with AirflowDAG("form_twice"):
    marked()
    marked()
    log()

with AirflowDAG("form_long_name"):
    marked.override(task_id=LONG)()
    log()

with AirflowDAG("form_other_interpreter"):

    @authoring.result_task
    @task.external_python(python=sys.executable)
    def fetch() -> str:
        return "answer"

    fetch()
    log()

with AirflowDAG("form_sensor"):

    @task.run_if(lambda context: True)
    @result_task
    @task.sensor(poke_interval=1)
    def fetch() -> PokeReturnValue:
        return PokeReturnValue(is_done=True, xcom_value="answer")

    fetch()
    log()

with AirflowDAG("form_plain", tags=["stream-result:answer"]):
    answer()
    answer.override(task_id="by_param", params={"stream_result": True})()
    log()
