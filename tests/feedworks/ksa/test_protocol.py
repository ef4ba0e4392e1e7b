"""What clients may ask: the true reason of a refusal, found without looking at all that a body holds."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from feedworks.ksa.api import Api, largest_body
from feedworks.ksa.protocol import ChatRequest, CompletionRequest, GenerateRequest
from feedworks.ksa.settings import PackageConfig


def refused(kind: Any, **fields: Any) -> list[tuple[tuple[int | str, ...], str]]:
    with pytest.raises(ValidationError) as error:
        kind.model_validate_json(json.dumps(fields))
    return [(each["loc"], each["msg"]) for each in error.value.errors()]


def chat(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}]}


TEXT = {"type": "text", "text": "a"}
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    ("kind", "fields", "place", "reason"),
    [
        (CompletionRequest, {"prompt": [-1]}, ("prompt",), "token ids from 0"),
        (CompletionRequest, {"prompt": [[1], [True]]}, ("prompt",), "token ids from 0"),
        (CompletionRequest, {"prompt": ["a", 1]}, ("prompt",), "prompts of one kind"),
        (CompletionRequest, {"prompt": ["a"] * 65}, ("prompt",), "at most 64 prompts"),
        (CompletionRequest, {"prompt": [[5]] * 10_000 + [{}]}, ("prompt",), "at most 64 prompts"),
        (GenerateRequest, {"prompt": ["a"]}, ("prompt",), "one prompt, a text or a list of token ids"),
        (GenerateRequest, {"prompt": [[1]]}, ("prompt",), "one prompt, a text or a list of token ids"),
        (GenerateRequest, {"prompt": 1}, ("prompt",), "one prompt, a text or a list of token ids"),
        (GenerateRequest, {"prompt": [True]}, ("prompt",), "token ids from 0"),
        (CompletionRequest, {"prompt": "a", "stop": list("abcde")}, ("stop",), "at most 4 stop texts"),
        (CompletionRequest, {"prompt": "a", "stop": [[]] * 9}, ("stop",), "at most 4 stop texts"),
        (CompletionRequest, {"prompt": "a", "stop": [""]}, ("stop",), "1 to 256 characters"),
        (CompletionRequest, {"prompt": "a", "logit_bias": {"x" * n: 1 for n in range(1025)}},
         ("logit_bias",), "at most 1024 tokens"),
        (ChatRequest, {"messages": [[]] * 4097}, ("messages",), "at most 4096 messages"),
        (ChatRequest, {"messages": [[]] * 9}, ("messages", 0), "Input should be"),
        (ChatRequest, chat([IMAGE]), ("messages", 0, "content"), "only text parts"),
        (ChatRequest, chat([TEXT] * 4097 + [IMAGE]), ("messages", 0, "content"), "at most 4096 parts"),
        (ChatRequest, chat("a") | {"metadata": {str(n): n for n in range(17)}}, ("metadata",), "at most 16"),
        (ChatRequest, chat("a") | {f"x{n}": 1 for n in range(99)}, ("x0",), "not permitted"),
        (ChatRequest, chat("a", **{f"x{n}": 1 for n in range(99)}), ("messages", 0, "x0"), "not permitted"),
    ],
)  # fmt: skip
def test_a_refusal_tells_one_true_reason(
    kind: Any, fields: dict[str, Any], place: tuple[int | str, ...], reason: str
) -> None:
    ((found, said),) = refused(kind, **fields)
    assert found == place
    assert reason in said


@pytest.mark.parametrize("prompt", ["a", [1, 2], ["a", "b"], [[1], [2, 3]]])
def test_prompts_of_every_kind(prompt: Any) -> None:
    request = CompletionRequest.model_validate_json(json.dumps({"prompt": prompt}))
    assert request.prompts() == ([prompt] if prompt in ("a", [1, 2]) else prompt)


def test_the_parts_of_a_content_are_one_text() -> None:
    (message,) = ChatRequest.model_validate_json(json.dumps(chat([TEXT, TEXT]))).messages
    assert message.plain() == {"role": "user", "content": "aa"}


def test_the_largest_body_grows_with_the_context() -> None:
    assert [largest_body(context) for context in (8, 2048, 1 << 20)] == [256 << 10, 2 << 20, 4 << 20]


def test_the_answer_of_a_tool_is_a_message_and_calls_of_tools_are_none():
    told = {"role": "tool", "content": "x", "tool_call_id": "1"}
    request = ChatRequest.model_validate(
        {"messages": [told, {**told, "role": "assistant", "tool_calls": []}]}
    )
    assert request.messages[0].plain() == {"role": "tool", "content": "x"}
    assert "at most 0 calls" in str(refused(ChatRequest, **chat("a", tool_calls=[{}])))


def test_a_body_that_never_begins_gets_the_client_s_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedworks.ksa.api.BODY_WITHIN_S", 0.05)
    monkeypatch.setattr("feedworks.serving.limits.LINGER_S", 0.05)
    sent: list[Any] = []

    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    answering: Any = SimpleNamespace(limits=PackageConfig())
    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": [(b"content-length", b"9")]}
    asyncio.run(Api(never, lambda: answering)(scope, never, send))
    assert sent[0]["status"] == 408
    error = json.loads(sent[1]["body"])["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"] == "the body did not come whole within 0.05 s"
