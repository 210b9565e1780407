"""What several tests need: conditions to wait for, and a real PostgreSQL with Airflow's schema."""
