"""The command `stream-server` and its terminal output.

`doctor/` checks an installation, `demo/` runs a real Airflow. Only `__main__` imports this package. Start with
`main.py`.
"""
