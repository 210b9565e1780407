from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream_server.http.chat.answer_text import AnswerText, Append, Restart, TextStep

ANSWER = ("answer", -1)


def read(steps: list[TextStep], before: str = "") -> str:
    """Return the text that a client has, whose text can be replaced."""
    for step in steps:
        before = step.text if isinstance(step, Restart) else before + step.text
    return before


def test_output_is_sent_as_it_comes_and_the_result_adds_nothing() -> None:
    text = AnswerText()
    assert text.add_output(ANSWER, (0, 1), "Be") == [Append("Be")]
    assert text.add_output(ANSWER, (0, 1), "cause") == [Append("cause")]
    assert text.finish("Because") == []


def test_a_result_without_output_is_sent_whole() -> None:
    assert AnswerText().finish("Because") == [Append("Because")]


def test_a_result_that_goes_on_sends_the_rest_only() -> None:
    text = AnswerText()
    text.add_output(ANSWER, (0, 1), "Be")
    assert text.finish("Because") == [Append("cause")]


def test_a_result_that_differs_from_the_output_replaces_it() -> None:
    text = AnswerText()
    text.add_output(ANSWER, (0, 1), "a draft")
    assert text.finish("Because") == [Restart("Because")]


def test_output_of_a_second_task_instance_waits_for_the_end() -> None:
    text = AnswerText()
    assert text.add_output(ANSWER, (0, 1), "one") == [Append("one")]
    assert text.add_output(("other", 0), (0, 1), "two") == []
    assert text.add_output(ANSWER, (0, 1), ".") == [Append(".")]
    assert text.text == "one.\ntwo"
    assert text.finish(None) == [Append("\ntwo")]


def test_a_retry_that_writes_the_same_text_sends_nothing_twice() -> None:
    text = AnswerText()
    text.add_output(ANSWER, (0, 1), "Because of")
    text.retract()
    assert text.add_output(ANSWER, (0, 2), "Be") == []
    assert text.add_output(ANSWER, (0, 2), "cause of the ") == [Append(" the ")]
    assert text.add_output(ANSWER, (0, 2), "light") == [Append("light")]
    assert text.finish("Because of the light") == []


def test_a_retry_that_writes_another_text_begins_again() -> None:
    text = AnswerText()
    text.add_output(ANSWER, (0, 1), "Because")
    text.retract()
    assert text.add_output(ANSWER, (0, 2), "Be") == []
    assert text.add_output(ANSWER, (0, 2), "e") == [Restart("Bee")]
    assert text.add_output(ANSWER, (0, 2), "s") == [Append("s")]
    assert text.finish("Bees") == []


def test_a_retry_that_writes_less_replaces_the_text() -> None:
    text = AnswerText()
    text.add_output(ANSWER, (0, 1), "Because of")
    text.retract()
    text.add_output(ANSWER, (0, 2), "Because")
    assert text.finish("Because") == [Restart("Because")]


def test_output_of_an_earlier_try_is_ignored() -> None:
    text = AnswerText()
    text.add_output(ANSWER, (0, 2), "new")
    assert text.add_output(ANSWER, (0, 1), "old") == []


def test_a_later_try_takes_the_output_of_the_earlier_one_back_without_a_reset() -> None:
    text = AnswerText()
    text.add_output(ANSWER, (0, 1), "Because")
    text.add_output(("other", -1), (0, 1), "one")
    assert text.add_output(ANSWER, (0, 2), "Be") == []
    text.add_output(("other", -1), (0, 2), "two")
    assert text.text == "Be\ntwo"


@given(
    st.lists(st.lists(st.sampled_from(["a", "ab", "b", "aa"]), max_size=6), min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_the_client_has_the_text_of_the_last_try(tries: list[list[str]], has_final: bool, has_resets: bool) -> None:
    text, steps = AnswerText(), list[TextStep]()
    for number, parts in enumerate(tries, 1):
        if number > 1 and (has_resets or not parts):
            text.retract()
        for part in parts:
            steps += text.add_output(ANSWER, (0, number), part)
    whole = "".join(tries[-1])
    assert text.text == whole
    steps += text.finish(whole if has_final else None)
    assert read(steps) == whole
