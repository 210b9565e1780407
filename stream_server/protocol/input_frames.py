"""Frames about human input: what a task asks, and the answer. `frames` has the others."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from stream_server.protocol.frame_members import Iteration, MapIndex, Reference, RunFrame, TaskId, Timestamp, TryNumber

Options: TypeAlias = Annotated[list[str], Meta(description="The options to choose from.")]
Withheld: TypeAlias = Annotated[
    bool, Meta(description="Whether the content is left out because the caller may not read it.")
]
TooLarge: TypeAlias = Annotated[
    Reference | None, Meta(description="Where to get the content, if it is too large to be sent.")
]


class InputParam(msgspec.Struct, frozen=True, kw_only=True):
    """A field of the form."""

    value: Annotated[msgspec.Raw, Meta(description="Value that is set in advance: any JSON value.")]
    description: Annotated[str | None, Meta(description="Description for people.")]
    schema: Annotated[msgspec.Raw, Meta(description="JSON Schema of the value: a JSON object.")]


class InputUser(msgspec.Struct, frozen=True, kw_only=True):
    """A user, as Airflow's auth manager names them."""

    id: Annotated[str, Meta(description="Id of the user.")]
    name: Annotated[str, Meta(description="Name of the user.")]


class InputFrame(RunFrame, frozen=True, kw_only=True):
    """A frame about a request for human input."""

    task_id: TaskId
    map_index: MapIndex
    try_number: TryNumber
    asked_at: Annotated[
        Timestamp,
        Meta(description="When the task asked. With the task instance and the try, it identifies the request."),
    ]
    seq: Annotated[
        int | None,
        Meta(description="Id of the journal row; absent after a snapshot. Together with `type` it is unique."),
    ] = None
    at: Annotated[
        Timestamp | None, Meta(description="When the row was written, inside Airflow's transaction; UTC.")
    ] = None
    iteration: Iteration = None


class Input(InputFrame, frozen=True, kw_only=True, tag="input", omit_defaults=True):
    """A task asks for human input. It replaces an earlier request of the task instance.

    The request is open until `input_answered`, until a `task` frame of the instance with another `try_number` or with
    another state than `running`, `deferred` or `awaiting_input`, or until the run ends.
    """

    subject: Annotated[str | None, Meta(description="The question; absent if the content is left out.")] = None
    body: Annotated[str | None, Meta(description="More text, usually Markdown.")] = None
    options: Options = msgspec.field(default_factory=list)
    defaults: Annotated[
        list[str] | None, Meta(description="Options that are chosen if there is no answer in time.")
    ] = None
    multiple: Annotated[bool, Meta(description="Whether several options may be chosen.")] = False
    params: Annotated[dict[str, InputParam], Meta(description="Fields of the form, by name.")] = msgspec.field(
        default_factory=dict
    )
    assignees: Annotated[
        list[InputUser], Meta(description="Users who may answer; absent if all with the permission may.")
    ] = msgspec.field(default_factory=list)
    expires_at: Annotated[
        Timestamp | None,
        Meta(description="When the request expires, from Airflow 3.3 on; absent if never, or if not known yet."),
    ] = None
    reference: TooLarge = None
    withheld: Withheld = False


class InputAnswered(InputFrame, frozen=True, kw_only=True, tag="input_answered", omit_defaults=True):
    """A request for human input was answered, or has expired and has its defaults."""

    answered_at: Annotated[Timestamp, Meta(description="When it was answered.")]
    by: Annotated[InputUser | None, Meta(description="The user who answered; absent if it has expired.")] = None
    expired: Annotated[bool, Meta(description="Whether the defaults were chosen because there was no answer.")] = False
    chosen_options: Annotated[list[str], Meta(description="The options that were chosen.")] = msgspec.field(
        default_factory=list
    )
    params_input: Annotated[dict[str, msgspec.Raw], Meta(description="JSON value by field of the form.")] = (
        msgspec.field(default_factory=dict)
    )
    reference: TooLarge = None
    withheld: Withheld = False
