"""What a server says of itself at `/ready`."""

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


async def until_ready(
    url: str, *, ready: bool = True, because: str = "", doorbell: bool | None = None, within: float = 20.0
) -> Any:
    """Wait until a server is ready, or is not, and return the body.

    Args:
        url: Address of the server.
        ready: Whether the status is to be 200, or 503.
        because: What one of its problems must hold.
        doorbell: What it must say of the doorbell, if that matters.
        within: Seconds.
    """

    async def ask() -> Any:
        status, body = await get_ready(url)
        fits = (
            (status == 200) == ready
            and because in "; ".join(body["problems"])
            and doorbell in {None, body["tail"]["doorbell"]}
        )
        return body if fits else None

    return await eventually_answered(ask, within, f"/ready ({'ready' if ready else because or 'not ready'})")
