"""Reading the output that the rows of a batch announce."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from stream_server.domain.transition import Transition
from stream_server.domain.transition_frames import is_output


async def add_output_bodies(
    transitions: Sequence[Transition],
    is_wanted: Callable[[Transition], bool],
    read_bodies: Callable[[list[int]], Awaitable[Mapping[int, str | None]]],
) -> list[Transition]:
    """Return transitions with the output that is wanted when this function returns.

    Args:
        transitions: A batch. What has a body already is not read.
        is_wanted: Whether a client wants the output that a row announces.
        read_bodies: Reads the output of journal rows, by row. A row whose output is gone may be missing.
    """
    found, was_read = [*transitions], set[int]()
    # A loop: clients that subscribe while the output is read want this batch, too.
    while missing := [
        one.seq for one in found if one.body is None and one.seq not in was_read and is_output(one) and is_wanted(one)
    ]:
        bodies = await read_bodies(missing)
        was_read.update(missing)
        found = [one._replace(body=bodies.get(one.seq, one.body)) for one in found]
    return found
