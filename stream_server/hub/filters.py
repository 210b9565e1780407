"""Which transitions a stream of many runs sends, and what its caller may read. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol

from stream_server.domain.transition import Transition, TransitionKind

FRAME_TYPES = (
    "task",
    "run",
    "chunk",
    "progress",
    "thinking",
    "tool_call",
    "tool_result",
    "input",
    "input_answered",
)
"""Types of frames that a filter can name, beside those about the connection."""

OUTPUT_TYPES = frozenset({"chunk", "progress", "thinking", "tool_call", "tool_result"})
"""Types of frames with output of running tasks. They are sent only if a filter names them."""

INPUT_TYPES = frozenset({"input", "input_answered"})
"""Types of frames about human input. They are sent only if a filter names them."""

NAMED_TYPES = OUTPUT_TYPES | INPUT_TYPES


class Filter(NamedTuple):
    """Which transitions are sent. A set that is empty matches everything."""

    dag_ids: frozenset[str] = frozenset()
    run_ids: frozenset[str] = frozenset()
    task_ids: frozenset[str] = frozenset()
    """A filter with tasks matches no transition of a run, but its `reset`: its tasks may be other ones."""

    states: frozenset[str] = frozenset()
    """States after the transition, with `no_status` for none. A filter with states matches only transitions."""

    types: frozenset[str] = frozenset()
    """Types of frames. Output and human input match only if their type is named."""

    redacted: bool = False
    """Whether output is sent without its values, because the caller may not read them."""

    inputs_redacted: bool = False
    """The same for human input."""

    @property
    def wants_output(self) -> bool:
        """Whether any output can match."""
        return bool(self.types & OUTPUT_TYPES) and not self.states

    @property
    def wants_inputs(self) -> bool:
        """Whether any human input can match."""
        return bool(self.types & INPUT_TYPES) and not self.states

    def withholds(self, frame_type: str) -> bool:
        """Whether frames of a type are sent without their content."""
        return (self.redacted and frame_type in OUTPUT_TYPES) or (self.inputs_redacted and frame_type in INPUT_TYPES)

    def matches_ids(self, transition: Transition) -> bool:
        """Whether the DAG, run and task of a transition match, whatever its frame."""
        return (
            (not self.dag_ids or transition.dag_id in self.dag_ids)
            and (not self.run_ids or transition.run_id in self.run_ids)
            and (
                not self.task_ids
                or transition.task_id in self.task_ids
                or transition.kind is TransitionKind.RUN_CHANGED
            )
        )

    def matches(self, transition: Transition, frame_type: str) -> bool:
        """Whether the frame of a transition is sent."""
        if not self.matches_ids(transition):
            return False
        if frame_type in NAMED_TYPES:
            return frame_type in self.types and not self.states
        if frame_type == "reset":
            return not self.types or "task" in self.types
        return (not self.states or (transition.state or "no_status") in self.states) and (
            not self.types or frame_type in self.types
        )


class Resource(NamedTuple):
    """What a permission is about."""

    dag_id: str
    output: bool = False
    """Whether it is the output of the DAG's tasks, rather than its runs."""

    inputs: bool = False
    """Whether it is the human input that the DAG's tasks ask for, rather than its runs."""

    @classmethod
    def of_content(cls, dag_id: str, frame_type: str) -> Resource | None:
        """Return what the content of a frame is part of, beside the runs of its DAG; `None` if it has no more."""
        if frame_type in OUTPUT_TYPES:
            return cls(dag_id, output=True)
        return cls(dag_id, inputs=True) if frame_type in INPUT_TYPES else None


PermissionMap = Mapping[Resource, bool | None]
"""Whether resources may be read; `None` while that is not known."""


class ReadPermissions(Protocol):
    """What a caller may read. Transitions wait until it is known; they are neither sent nor dropped before."""

    max_wait: float
    """Seconds for which transitions may wait."""

    def may_read(self, resource: Resource) -> bool | None:
        """Whether the caller may read something; `None` if that is not known."""

    def request_decision(self, resources: Collection[Resource], then: Callable[[], None]) -> None:
        """Look up what is not known. `then` is called when all look-ups have ended, also without an answer."""

    async def filter_readable(self, resources: Collection[Resource]) -> Collection[Resource]:
        """Return which of some resources the caller may read, once that is known of all.

        Raises:
            PermissionUnknown: It can't be found out.
        """
