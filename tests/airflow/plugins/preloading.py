"""Has Airflow's scheduler and DAG processor import once what tasks and DAG files need, before they fork.

Otherwise, the process of each task and of each DAG file imports it again, and searches the installed distributions for
decorators: this takes more CPU time than the rest of a short task. `stream-server demo` runs without this plugin.
"""

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin


class _Preloading:
    @hookimpl
    def on_starting(self, component):
        # Each task calls this, too, with a component of another kind.
        if hasattr(component, "job_type"):
            _make_dag()


class PreloadingPlugin(AirflowPlugin):
    name = "preloading"
    listeners = [_Preloading()]  # noqa: RUF012 (Airflow's own)


def _make_dag():
    """Do what a DAG file and the start of a task do."""
    # Here, because all of Airflow's processes load plugins.
    import airflow.dag_processing.dagbag  # noqa: PLC0415
    import airflow.sdk.execution_time.task_runner  # noqa: F401, PLC0415
    import jinja2.ext  # noqa: F401, PLC0415
    from airflow.sdk import dag, task  # noqa: PLC0415
    from airflow.sdk.listener import get_listener_manager  # noqa: PLC0415
    from airflow.sdk.plugins_manager import integrate_macros_plugins  # noqa: PLC0415

    integrate_macros_plugins()
    get_listener_manager()

    @dag
    def preloaded():
        @task
        def do_nothing():
            pass

        do_nothing()

    preloaded()
