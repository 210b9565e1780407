"""The command `stream-server` and its terminal output.

`doctor/` finds what is wrong with an installation, `demo/` runs a real Airflow. Only `__main__` imports it. Start with
`main.py`.
"""
