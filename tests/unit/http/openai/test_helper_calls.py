"""Requests that Open WebUI makes for itself, with prompts as it sends them."""

from __future__ import annotations

import json

import pytest

from stream_server.http.openai.helper_calls import answer_helper_task, find_helper_task
from stream_server.http.openai.requests import CompletionRequest, Message

HISTORY = "<chat_history>\nUSER: Why is the sky blue, and why are sunsets red?\nASSISTANT: Because.\n</chat_history>"
PROMPTS = {
    "title_generation": (
        "Generate a concise title summarizing the chat history.\n### Guidelines:\n- Keep it short: 2-4 words is best.\n"
        '### Output:\nJSON format: { "title": "your concise title here" }\n### Examples:\n- { "title": "Stock Trends" }'
    ),
    "tags_generation": (
        "Generate 1-3 broad tags categorizing the main themes of the chat history.\n\n### Output:\n"
        'JSON format: { "tags": ["tag1", "tag2", "tag3"] }'
    ),
    "follow_up_generation": (
        "Predict 3-5 useful messages this user might naturally send next.\n### Guidelines:\n- Response must be a JSON"
        ' object with a "follow_ups" key containing an array of strings.\n### Output:\n'
        'JSON format: { "follow_ups": ["Suggested next message 1"] }'
    ),
    "query_generation": (
        "Analyze the chat history to determine the necessity of generating search queries.\n\n### Guidelines:\n"
        '- respond in the format: { "queries": ["query1", "query2"] }\n\n### Output:\n'
        'Strictly return in JSON format: \n{\n  "queries": ["query1", "query2"]\n}'
    ),
    "autocomplete_generation": (
        "You are an autocompletion system. Continue the text in `<text>` based on the **completion type**.\n"
        '5. If unsure, return: `{ "text": "" }`.'
    ),
    "image_prompt_generation": (
        "Generate a detailed prompt for am image generation task.\n\n### Output:\nStrictly return in JSON format:\n"
        '{\n    "prompt": "Your detailed description here."\n}'
    ),
}
ANSWERS = {
    "tags_generation": {"tags": []},
    "follow_up_generation": {"follow_ups": []},
    "query_generation": {"queries": []},
    "autocomplete_generation": {"text": ""},
    "image_prompt_generation": {"prompt": ""},
}
RAG_PROMPT = (
    "### Task:\nRespond to the user query using the provided context.\n<context>\n"
    '<source id="1">{"title": "a document"}</source>\n</context>\n'
)


def ask(text: str, *, stream: bool = False, role: str = "user") -> CompletionRequest:
    return CompletionRequest("chat", [Message(role, text)], stream)


def prompt_of(task: str) -> str:
    return f"### Task:\n{PROMPTS[task]}\n### Chat History:\n{HISTORY}"


@pytest.mark.parametrize("task", PROMPTS)
def test_tasks_are_recognized_by_their_prompts(task: str) -> None:
    request = ask(prompt_of(task))
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
        ask(prompt_of("title_generation"), stream=True),
        ask(prompt_of("title_generation"), role="system"),
        ask(RAG_PROMPT),
        CompletionRequest("chat", [Message("user", prompt_of("title_generation"))] * 2),
        CompletionRequest("chat", []),
    ],
)
def test_questions_of_users_are_no_tasks(request_: CompletionRequest) -> None:
    assert find_helper_task(request_, {}) is None


def test_a_prompt_without_history_has_a_default_title() -> None:
    assert json.loads(answer_helper_task("title_generation", ask("Generate a title"))) == {"title": "New chat"}
