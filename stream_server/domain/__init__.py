"""What a DAG run is and how it ends.

DAG graph, trigger rules, predicted outcomes, task output: pure functions over transitions and snapshots, no I/O.
Imports `protocol`. Start with `run_state.py` and `outcome.py`.
"""
