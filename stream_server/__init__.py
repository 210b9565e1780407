"""Trigger an Airflow DAG and stream its run and result live."""

__version__ = "0.1.0"
