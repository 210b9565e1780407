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

from stream_server.auth.authorizer import FULL_ACCESS, Access, Caller, StreamScope
from stream_server.auth.permission_cache import CachedPermission, PermissionCache
from stream_server.auth.revalidation import CHECKS_PER_INTERVAL, GROUPS_PER_TURN, Revalidator
from stream_server.hub.subscription import Subscription

INTERVAL = 30.0
RUNS = 100


async def _granted() -> CachedPermission:
    return CachedPermission(200)


async def measure(clients: int, credentials: int) -> dict[str, float]:
    """Let an interval pass, and return its cost.

    Returns:
        `questions` to Airflow, `turn_us` for the longest turn of the loop without garbage collection,
        `cpu_percent` of a core for revalidation and requests, and `bytes` for each client.
    """
    permits = PermissionCache(good_for=INTERVAL, refused_for=10, limit=20_000, at_once=8)
    asked, now = 0, 0.0

    async def ask(caller: Caller, scope: StreamScope) -> Access:
        nonlocal asked
        for kind in ("runs", "xcoms"):
            asked += 1
            await permits.get(caller, (kind, scope.dag_id), _granted, anew=True)
        return FULL_ACCESS

    guards = Revalidator(ask, permits.credential_digest, interval=INTERVAL, grace=300, clock=lambda: now)
    callers = [Caller.from_token(f"{number}.e30.signature") for number in range(credentials)]
    subscriptions = [Subscription(0) for _ in range(clients)]
    tracemalloc.start()
    for number, subscription in enumerate(subscriptions):
        guards.register(
            callers[number % credentials], StreamScope("chat", f"r{number % RUNS}"), FULL_ACCESS, subscription, None
        )
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    gc.collect()
    gc.disable()
    begun, longest = time.process_time(), 0.0
    for _ in range(CHECKS_PER_INTERVAL):
        now += INTERVAL / CHECKS_PER_INTERVAL
        parties = guards.groups
        for first in range(0, len(parties), GROUPS_PER_TURN):
            before = time.thread_time()
            guards.check_groups(parties[first : first + GROUPS_PER_TURN])
            longest = max(longest, time.thread_time() - before)
            longest = max(longest, await _run_loop_once())
        while any(party.is_queued for party in parties):
            longest = max(longest, *[await _run_loop_once() for _ in range(100)])
    gc.enable()
    return {
        "questions": asked,
        "turn_us": round(longest * 1e6, 1),
        "cpu_percent": round((time.process_time() - begun) / INTERVAL * 100, 3),
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
    misses = [] if figures["1"]["questions"] <= 4 else ["more than two questions in an interval for one credential"]
    print(json.dumps({"clients": clients, "by_credentials": figures, "misses": misses}))


if __name__ == "__main__":
    asyncio.run(main())
