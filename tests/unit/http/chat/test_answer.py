from __future__ import annotations

import msgspec

from stream_server.http.chat.answer import Activity, Answer
from stream_server.protocol.input_frames import Input, InputAnswered
from stream_server.protocol.output_frames import Chunk
from support.builders import KEY, at


def test_a_later_iteration_of_a_loop_takes_the_output_of_the_earlier_one_back() -> None:
    answer = Answer()
    for iteration, try_number, text in ((0, 1, "a"), (0, 2, "first"), (1, 1, "second"), (0, 3, "late")):
        ids = {**KEY._asdict(), "task_id": "draft", "map_index": -1, "seq": 1, "at": at(0), "index": 0}
        value = msgspec.Raw(msgspec.json.encode(text))
        answer.apply(Chunk(**ids, try_number=try_number, iteration=iteration, value=value))
    assert answer.text == "second"


def test_questions_to_humans_are_activities() -> None:
    answer = Answer()
    ids = {**KEY._asdict(), "task_id": "approve", "map_index": 2, "try_number": 1, "asked_at": at(0)}
    assert answer.apply(Input(**ids, subject="Publish?")) == [Activity("approve[2]: asks Publish?")]
    assert answer.apply(Input(**ids, withheld=True)) == [Activity("approve[2]: asks")]
    assert answer.apply(InputAnswered(**ids, answered_at=at(1))) == [Activity("approve[2]: was answered")]
    expired = InputAnswered(**ids, answered_at=at(1), expired=True)
    assert answer.apply(expired) == [Activity("approve[2]: got no answer in time")]
