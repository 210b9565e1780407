"""Requests that a chat UI makes for itself: a title, tags, suggestions. They are answered without a run. Pure.

Open WebUI sends them to the same model as questions (`routers/tasks.py` and `config.py` there have the prompts and the
expected JSON). They are recognized by the header `X-OpenWebUI-Task`, which its administrator can configure, or by the
prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from stream_server.http.openai.requests import CompletionRequest

TASK_HEADER = "x-openwebui-task"
PROMPT_START = "### Task:"

TITLE = "title_generation"
LOCAL_ANSWERS: Mapping[str, Any] = {
    TITLE: None,  # made of the question
    "tags_generation": {"tags": []},
    "follow_up_generation": {"follow_ups": []},
    "query_generation": {"queries": []},
    "autocomplete_generation": {"text": ""},
    "image_prompt_generation": {"prompt": ""},
    "function_calling": {"tool_calls": []},
    "emoji_generation": "\N{SPEECH BALLOON}",
}
"""What is answered, by task. The text of other tasks, such as the answers of several models in one, needs a run."""

TASK_OF_MEMBER = {
    "title": TITLE,
    "tags": "tags_generation",
    "follow_ups": "follow_up_generation",
    "queries": "query_generation",
    "text": "autocomplete_generation",
    "prompt": "image_prompt_generation",
}
"""Tasks by the member that the answer must have. All prompts show it, in each version of Open WebUI."""

HISTORY_START = "<chat_history>"
_SHOWN_MEMBER = re.compile(rf'"({"|".join(TASK_OF_MEMBER)})"\s*:')
_FIRST_USER_LINE = re.compile(r"^(?:USER|user)\s*:\s*(.+)$", re.MULTILINE)
MAX_TITLE_WORDS, MAX_TITLE_LENGTH = 6, 60
DEFAULT_TITLE = "New chat"


def find_helper_task(request: CompletionRequest, headers: Mapping[str, str]) -> str | None:
    """Return the task of a chat UI that a request is made for; `None` if it is a question of the user."""
    named = headers.get(TASK_HEADER)
    if named:
        return named if named in LOCAL_ANSWERS else None
    if request.stream or len(request.messages) != 1 or request.messages[0].role != "user":
        return None
    instructions, has_history, _ = request.messages[0].text.lstrip().partition(HISTORY_START)
    # The prompt for answers from documents begins in the same way, and is a question of the user.
    if not instructions.startswith(PROMPT_START) or not has_history:
        return None
    member = _SHOWN_MEMBER.search(instructions)
    return None if member is None else TASK_OF_MEMBER[member[1]]


def answer_helper_task(task: str, request: CompletionRequest) -> str:
    """Return the text that the chat UI expects, without a model: JSON in most cases."""
    answer = {"title": _build_title(request)} if task == TITLE else LOCAL_ANSWERS[task]
    return answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()


def _build_title(request: CompletionRequest) -> str:
    """Return the first words of the first question in the prompt."""
    prompt = "\n".join([message.text for message in request.messages])
    _, marker, history = prompt.rpartition(HISTORY_START)
    found = _FIRST_USER_LINE.search(history if marker else prompt)
    words = found[1].split() if found else []
    title = " ".join(words[:MAX_TITLE_WORDS])[:MAX_TITLE_LENGTH]
    return title + ("…" if len(words) > MAX_TITLE_WORDS else "") or DEFAULT_TITLE
