from __future__ import annotations

import msgspec

from stream_server.http.chat.answer import Answer
from stream_server.protocol.frames import Chunk
from support.builders import KEY, at


def test_a_later_iteration_of_a_loop_takes_the_output_of_the_earlier_one_back() -> None:
    answer = Answer()
    for iteration, try_number, text in ((0, 1, "a"), (0, 2, "first"), (1, 1, "second"), (0, 3, "late")):
        ids = {**KEY._asdict(), "task_id": "draft", "map_index": -1, "seq": 1, "at": at(0), "index": 0}
        value = msgspec.Raw(msgspec.json.encode(text))
        answer.apply(Chunk(**ids, try_number=try_number, iteration=iteration, value=value))
    assert answer.text == "second"
