"""Helpers for `/ready`."""

from __future__ import annotations

from typing import Any

import httpx

from support.streams import DEADLINE
from support.waiting import eventually_answered


async def get_ready(url: str) -> tuple[int, Any]:
    """Return status and body of `/ready`."""
    async with httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client:
        answer = await client.get("/ready")
        return answer.status_code, answer.json()


async def wait_until_ready(
    url: str, *, ready: bool = True, because: str = "", doorbell: bool | None = None, within: float = 20.0
) -> Any:
    """Wait until a server is ready, or not ready; return the body.

    Args:
        url: Address of the server.
        ready: Whether the status is 200, else 503.
        because: Text that its problems must contain.
        doorbell: Expected value of the field, if it matters.
        within: Seconds.
    """

    async def request_readiness() -> Any:
        status, body = await get_ready(url)
        fits = (
            (status == 200) == ready
            and because in "; ".join(body["problems"])
            and doorbell in {None, body["tail"]["doorbell"]}
        )
        return body if fits else None

    return await eventually_answered(
        request_readiness, within, f"/ready ({'ready' if ready else because or 'not ready'})"
    )
