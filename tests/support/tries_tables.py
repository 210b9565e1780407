"""The tables of Airflow 3.4 that the triggers need, made from those of Airflow 3.3."""

from __future__ import annotations

TRIES_TABLES = """
ALTER TABLE task_instance RENAME COLUMN map_index TO region_index;
ALTER TABLE task_instance
    ADD COLUMN region_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    ADD COLUMN working_set boolean DEFAULT true, ADD COLUMN archived_reason varchar;
CREATE TABLE dynamic_region (id uuid PRIMARY KEY, node_id varchar NOT NULL, parent_region_index integer);
CREATE TABLE xcom_v2 (
    task_instance_id uuid, key varchar, value jsonb, timestamp timestamptz, dag_result boolean,
    PRIMARY KEY (task_instance_id, key));
ALTER TABLE xcom RENAME TO xcom_v1;
CREATE TABLE legacy_task_data_owner (
    dag_id varchar, run_id varchar, task_id varchar, map_index integer, task_instance_id uuid);
"""
"""Statements for a database of Airflow 3.3. They keep the rows."""

INSTANCE_TABLES = """
DROP TABLE dynamic_region, xcom_v2, legacy_task_data_owner;
ALTER TABLE xcom_v1 RENAME TO xcom;
ALTER TABLE task_instance DROP COLUMN region_id, DROP COLUMN working_set, DROP COLUMN archived_reason;
ALTER TABLE task_instance RENAME COLUMN region_index TO map_index;
"""
"""The reverse, as `airflow db downgrade`. They keep the rows, but for new values."""
