"""The cost of permissions for many clients: a round of revalidation, and the requests to Airflow.

`python -m bench.auth [--clients 10000]`. Only the server's side is measured. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
import tracemalloc

from stream_server.auth.authorizer import FULL_ACCESS, Access, Caller, Grant, StreamScope
from stream_server.auth.permission_cache import CachedPermission, PermissionCache
from stream_server.auth.revalidation import CHECKS_PER_INTERVAL, GROUPS_PER_TURN, Revalidator
from stream_server.hub.subscription import Subscription

INTERVAL = 30.0
RUNS = 100


async def _granted() -> CachedPermission:
    return CachedPermission(200)


async def measure(clients: int, credentials: int) -> dict[str, float]:
    """Simulate an interval, and return its cost.

    Returns:
        `requests` to Airflow, `turn_us` for the longest turn of the loop without garbage collection,
        `cpu_percent` of a core for revalidation and requests, and `bytes` for each client.
    """
    cache = PermissionCache(good_for=INTERVAL, refused_for=10, limit=20_000, at_once=8)
    requests, now = 0, 0.0

    async def check(caller: Caller, scope: StreamScope) -> Access:
        nonlocal requests
        for kind in ("runs", "xcoms"):
            requests += 1
            await cache.get(caller, (kind, scope.dag_id), _granted, anew=True)
        return FULL_ACCESS

    revalidator = Revalidator(check, cache.credential_digest, interval=INTERVAL, grace=300, clock=lambda: now)
    callers = [Caller.from_token(f"{number}.e30.signature") for number in range(credentials)]
    subscriptions = [Subscription(0) for _ in range(clients)]
    tracemalloc.start()
    for number, subscription in enumerate(subscriptions):
        revalidator.register(
            Grant(callers[number % credentials], StreamScope("chat", f"r{number % RUNS}"), FULL_ACCESS),
            subscription,
            None,
        )
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    gc.collect()
    gc.disable()
    started, longest = time.process_time(), 0.0
    for _ in range(CHECKS_PER_INTERVAL):
        now += INTERVAL / CHECKS_PER_INTERVAL
        groups = revalidator.groups
        for first in range(0, len(groups), GROUPS_PER_TURN):
            before = time.thread_time()
            revalidator.check_groups(groups[first : first + GROUPS_PER_TURN])
            longest = max(longest, time.thread_time() - before)
            longest = max(longest, await _run_loop_once())
        while any(group.is_queued for group in groups):
            longest = max(longest, *[await _run_loop_once() for _ in range(100)])
    gc.enable()
    return {
        "requests": requests,
        "turn_us": round(longest * 1e6, 1),
        "cpu_percent": round((time.process_time() - started) / INTERVAL * 100, 3),
        "bytes": round(size / clients, 1),
    }


async def _run_loop_once() -> float:
    """Run the loop once; return the CPU seconds, which other processes do not affect."""
    before = time.thread_time()
    await asyncio.sleep(0)
    return time.thread_time() - before


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000)
    clients = parser.parse_args().clients
    figures = {str(each): await measure(clients, each) for each in (1, 100, clients)}
    for credentials, figure in figures.items():
        print(f"{clients} clients with {credentials} credentials: {figure}")
    misses = [] if figures["1"]["requests"] <= 4 else ["more than two requests in an interval for one credential"]
    print(json.dumps({"clients": clients, "by_credentials": figures, "misses": misses}))


if __name__ == "__main__":
    asyncio.run(main())
