"""Looking for what stands between Airflow's commits and the clients of its streams; nothing is changed."""
