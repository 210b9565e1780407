"""Requests that Open WebUI makes for itself, with prompts as it sends them."""

from __future__ import annotations

import json

import pytest

from stream_server.http.openai.helper_calls import answer_helper_task, find_helper_task
from stream_server.http.openai.requests import CompletionRequest, Message

HISTORY = "<chat_history>\nUSER: Why is the sky blue, and why are sunsets red?\nASSISTANT: Because.\n</chat_history>"
PROMPTS = {
    "title_generation": "Generate a concise, 3-5 word title with an emoji summarizing the chat history.",
    "tags_generation": "Generate 1-3 broad tags categorizing the main themes of the chat history, along with 1-3 more.",
    "follow_up_generation": "Suggest 3-5 relevant follow-up questions that the user might naturally ask next",
    "query_generation": "Analyze the chat history to determine the necessity of generating search queries, in English.",
    "autocomplete_generation": "You are an autocompletion system. Continue the text in `<text>` based on the type.",
    "image_prompt_generation": "Generate a detailed prompt for am image generation task based on the given language.",
}
ANSWERS = {
    "tags_generation": {"tags": []},
    "follow_up_generation": {"follow_ups": []},
    "query_generation": {"queries": []},
    "autocomplete_generation": {"text": ""},
    "image_prompt_generation": {"prompt": ""},
}
RAG_PROMPT = "### Task:\nRespond to the user query using the provided context, with a title for each source."


def ask(text: str, *, stream: bool = False, role: str = "user") -> CompletionRequest:
    return CompletionRequest("chat", [Message(role, text)], stream)


@pytest.mark.parametrize("task", PROMPTS)
def test_tasks_are_recognized_by_their_prompts(task: str) -> None:
    request = ask(f"### Task:\n{PROMPTS[task]}\n\n### Guidelines:\n- A title, tags, follow-ups.\n{HISTORY}")
    assert find_helper_task(request, {}) == task
    answer = json.loads(answer_helper_task(task, request))
    assert answer == ANSWERS.get(task, {"title": "Why is the sky blue, and…"})


def test_the_header_names_the_task() -> None:
    request = ask("anything", stream=True)
    assert find_helper_task(request, {"x-openwebui-task": "emoji_generation"}) == "emoji_generation"
    assert answer_helper_task("emoji_generation", request) == "💬"
    # The answer to a question, made of the answers of several models, needs a run.
    assert find_helper_task(request, {"x-openwebui-task": "moa_response_generation"}) is None


@pytest.mark.parametrize(
    "request_",
    [
        ask("What is a title?"),
        ask(f"### Task:\n{PROMPTS['title_generation']}", stream=True),
        ask(f"### Task:\n{PROMPTS['title_generation']}", role="system"),
        ask(RAG_PROMPT.replace(", with a title for each source", "")),
        CompletionRequest("chat", [Message("user", f"### Task:\n{PROMPTS['title_generation']}")] * 2),
        CompletionRequest("chat", []),
    ],
)
def test_questions_of_users_are_no_tasks(request_: CompletionRequest) -> None:
    assert find_helper_task(request_, {}) is None


def test_a_prompt_without_history_has_a_default_title() -> None:
    assert json.loads(answer_helper_task("title_generation", ask("### Task:\nGenerate a title"))) == {
        "title": "New chat"
    }
