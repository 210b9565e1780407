"""Trigger an Airflow DAG and watch it answer."""

__version__ = "0.1.0"
