"""What each process with this folder on PYTHONPATH runs first: it collects garbage rarely."""

import gc

gc.set_threshold(50_000, 20, 20)
