"""Shared test helpers: wait conditions, a real PostgreSQL with Airflow's schema, servers, clients and stubs."""
