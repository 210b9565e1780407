"""Bodies of responses."""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

from stream_server.client.errors import UnexpectedResponse
from stream_server.client.outcomes import Outcome
from stream_server.client.requests import Response
from stream_server.protocol.bodies import Cancelled, InputReceipt

T = TypeVar("T")


def decode_outcome(response: Response) -> Outcome:
    return _decode(response, Outcome)


def decode_receipt(response: Response) -> InputReceipt:
    return _decode(response, InputReceipt)


def decode_state(response: Response) -> str:
    """Return the state in the response to `cancel`."""
    return _decode(response, Cancelled).state


def _decode(response: Response, kind: type[T]) -> T:
    """Return the body.

    Raises:
        UnexpectedResponse: It is something else, for example a page of a proxy.
    """
    try:
        # Not msgspec's parser: it refuses numbers beyond the range of floats, and lone surrogates.
        return msgspec.convert(json.loads(response.body.decode(errors="replace")), kind)
    except (ValueError, RecursionError) as error:
        start = response.body[:200].decode(errors="replace")
        raise UnexpectedResponse(f"not a response of stream_server ({error}): {start}") from error
