"""The service as clients have it: `bentoml serve` in a process of its own, asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from feedworks.errors import FeedworksError
from feedworks.ksa.vocabulary import Vocabulary
from feedworks.serving.scrape import scrape
from feedworks.serving.server import running_server
from feedworks.serving.stream_load import leave

from . import served

PROMPT = "the old sea is"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.write_package(tmp_path_factory.mktemp("service") / "model")


@pytest.fixture(scope="module")
def vocabulary(model: Path) -> Vocabulary:
    return Vocabulary(model)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service") / "log"


@pytest.fixture(scope="module")
def address(model: Path, log: Path) -> Iterator[str]:
    environment = {"FEEDWORKS_MODEL_DIR": str(model), "OMP_NUM_THREADS": "1"}
    with running_server(served.TARGET, environment, log) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with (
        httpx.Client(trust_env=False, timeout=60) as plain,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", http_client=plain, max_retries=0) as opened,
    ):
        yield opened


@pytest.fixture(scope="module")
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as opened:
        yield opened


def ask(client: openai.OpenAI, **more: Any) -> Any:
    settings = {"model": "ksa", "prompt": PROMPT, "max_tokens": 30, "temperature": 0} | more
    return client.completions.create(**settings)


def become_idle(http: httpx.Client) -> dict[str, float]:
    """Wait until nothing runs."""
    for _ in range(400):
        found = scrape(str(http.base_url), "ksa_")
        if not (found["ksa_running"] or found["ksa_waiting"] or found["ksa_cache_used_bytes"]):
            return found
        time.sleep(0.05)
    raise AssertionError(f"still at work: {found}")


def test_a_greedy_answer_is_the_model_s(client: openai.OpenAI, vocabulary: Vocabulary) -> None:
    answer = ask(client)
    expected = served.alone(vocabulary.encode(PROMPT), 30)
    assert answer.choices[0].text == vocabulary.text(expected)
    assert answer.usage.prompt_tokens == len(vocabulary.encode(PROMPT))
    assert answer.usage.completion_tokens == len(expected)
    assert answer.choices[0].finish_reason == ("stop" if expected[-1] == served.EOS else "length")


def test_a_stream_puts_together_the_same(client: openai.OpenAI) -> None:
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert len(chunks) > 5
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)


def test_streams_at_once_say_what_they_say_alone(address: str, client: openai.OpenAI) -> None:
    prompts = [PROMPT, "ship", "naïve cafés, 日本語 and 🦊", "w" * 30, "and the sea is wide", "t"]
    alone = [ask(client, prompt=prompt, max_tokens=40).choices[0].text for prompt in prompts]

    async def stream(opened: openai.AsyncOpenAI, prompt: str) -> str:
        chunks = await opened.completions.create(
            model="ksa", prompt=prompt, max_tokens=40, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in chunks])

    async def run() -> list[str]:
        async with (
            httpx.AsyncClient(trust_env=False, timeout=60) as plain,
            openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", http_client=plain) as opened,
        ):
            return await asyncio.gather(*(stream(opened, prompt) for prompt in prompts))

    assert asyncio.run(run()) == alone


def test_several_prompts_and_answers(client: openai.OpenAI, vocabulary: Vocabulary) -> None:
    tokens = vocabulary.encode("ship")
    answer = ask(client, prompt=[vocabulary.encode(PROMPT), tokens], n=2, echo=True, max_tokens=8)
    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert texts[0] == texts[1] == PROMPT + ask(client, max_tokens=8).choices[0].text
    assert texts[2] == texts[3] == "ship" + ask(client, prompt="ship", max_tokens=8).choices[0].text


def test_a_seed_repeats_and_answers_differ(client: openai.OpenAI) -> None:
    settings = {"temperature": 1.5, "seed": 11, "n": 2, "extra_body": {"top_k": 50, "ignore_eos": True}}
    first, again = ([choice.text for choice in ask(client, **settings).choices] for _ in range(2))
    assert first == again
    assert first[0] != first[1]


def test_log_probabilities(client: openai.OpenAI) -> None:
    found = ask(client, logprobs=3, max_tokens=6, extra_body={"ignore_eos": True}).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 6
    stream = ask(client, logprobs=3, max_tokens=6, extra_body={"ignore_eos": True}, stream=True)
    streamed = [each.choices[0].logprobs for each in stream if each.choices and each.choices[0].logprobs]
    assert [place for each in streamed for place in each.text_offset] == found.text_offset
    assert found.text_offset == sorted(found.text_offset)
    for logprob, top in zip(found.token_logprobs, found.top_logprobs, strict=True):
        assert len(top) == 3
        assert max(top.values()) == pytest.approx(logprob)  # temperature is 0
    chat = client.chat.completions.create(
        model="ksa", messages=[{"role": "user", "content": "x"}], logprobs=True, top_logprobs=2, max_tokens=4
    )
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content
    assert content is not None
    assert all(len(each.top_logprobs) == 2 and each.bytes is not None for each in content)


def test_a_chat(client: openai.OpenAI, vocabulary: Vocabulary) -> None:
    messages: Any = [
        {"role": "developer", "content": "be short"},
        {"role": "user", "content": [{"type": "text", "text": "the sea"}]},
    ]
    settings: Any = {"model": "ksa", "messages": messages, "temperature": 0, "max_completion_tokens": 20}
    whole = client.chat.completions.create(**settings)
    text = vocabulary.chat_text(
        [{"role": "system", "content": "be short"}, {"role": "user", "content": "the sea"}]
    )
    prompt = vocabulary.encode(text, special=False)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(prompt)
    said = whole.choices[0].message.content
    assert said == vocabulary.text(served.alone(prompt, 20))
    chunks = list(client.chat.completions.create(**settings, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_generate(http: httpx.Client, client: openai.OpenAI) -> None:
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    whole = http.post("/generate", json=body).json()
    assert whole["text"] == ask(client, max_tokens=12).choices[0].text
    with http.stream("POST", "/generate", json=body | {"stream": True}) as answer:
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    assert "".join(event["text"] for event in events) == whole["text"]
    assert {name: events[-1][name] for name in whole if name != "text"} == {
        name: value for name, value in whole.items() if name != "text"
    }


def test_the_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id.startswith("ksa:")
    assert ask(client, model=model.id).model == model.id
    assert client.models.retrieve(model.id).id == model.id
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt")
    assert error.value.code == "model_not_found"


BAD: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "unknown model": ({"model": "gpt-4"}, 404, "model_not_found"),
    "long prompt": ({"prompt": "the " * 200}, 400, "context_length_exceeded"),
    "very long prompt": ({"prompt": "日" * 60_000}, 400, "context_length_exceeded"),
    "long answer": ({"max_tokens": 81}, 400, "invalid_value"),
    "no room": ({"prompt": [5] * 90, "max_tokens": 10}, 400, "context_length_exceeded"),
    "max_tokens 0": ({"max_tokens": 0}, 400, None),
    "huge max_tokens": ({"max_tokens": 10**30}, 400, "invalid_value"),
    "temperature": ({"temperature": 2.1}, 400, None),
    "temperature as text": ({"temperature": "1"}, 400, None),
    "top_p 0": ({"top_p": 0}, 400, None),
    "penalty": ({"frequency_penalty": -2.5}, 400, None),
    "vanishing penalty": ({"extra_body": {"repetition_penalty": 1e-39}}, 400, None),
    "bias of no token": ({"logit_bias": {"320": 1}}, 400, None),
    "bias out of range": ({"logit_bias": {"3": 101}}, 400, None),
    "bias of a word": ({"logit_bias": {"x": 1}}, 400, None),
    "n": ({"n": 0}, 400, None),
    "too many": ({"n": 11}, 400, None),
    "best_of": ({"best_of": 4}, 400, None),
    "no prompt": ({"prompt": None}, 400, None),
    "empty prompt": ({"prompt": ""}, 400, None),
    "no prompts": ({"prompt": []}, 400, None),
    "an empty prompt": ({"prompt": [[3], []]}, 400, None),
    "token out of range": ({"prompt": [320]}, 400, None),
    "negative token": ({"prompt": [-1]}, 400, None),
    "mixed prompts": ({"prompt": ["a", 1]}, 400, None),
    "five stops": ({"stop": list("abcde")}, 400, None),
    "empty stop": ({"stop": ""}, 400, None),
    "echo and logprobs": ({"echo": True, "logprobs": 1}, 400, None),
    "options without stream": ({"stream_options": {"include_usage": True}}, 400, None),
    "unknown field": ({"extra_body": {"frob": 1}}, 400, "unknown_parameter"),
    "negative top_k": ({"extra_body": {"top_k": -1}}, 400, None),
}


@pytest.mark.parametrize(("fields", "status", "code"), BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_gets_the_client_s_error(
    client: openai.OpenAI, fields: dict[str, Any], status: int, code: str | None, stream: bool
) -> None:
    extra = {} if "stream_options" in fields else {"stream": stream}
    with pytest.raises(openai.APIStatusError) as error:
        ask(client, **extra, **fields)
    assert error.value.status_code == status
    assert error.value.code == code
    assert error.value.type == "invalid_request_error"
    name = next(iter(fields.get("extra_body", fields)))
    assert error.value.param in (name, "prompt")
    body = error.value.body
    assert isinstance(body, dict)
    assert len(body["message"]) < 1000


BODIES = {
    "no body": b"",
    "cut off": b'{"prompt": "a',
    "not utf-8": b'{"prompt": "\xff"}',
    "half a character": b'{"prompt": "\\ud800"}',
    "nested deeply": b"[" * 200_000,
    "a list": b"[]",
    "null": b"null",
    "NaN": b'{"prompt": "a", "temperature": NaN}',
}


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_body_that_is_no_request(http: httpx.Client, path: str, body: bytes) -> None:
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("messages", "more"),
    [
        ([], {}),
        ([{"role": "robot", "content": "x"}], {}),
        ([{"role": "user"}], {}),
        ([{"role": "tool", "content": "x"}], {}),  # the template's own refusal
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], {}),
        ([{"role": "user", "content": "x"}], {"tools": [{"type": "function"}]}),
        ([{"role": "user", "content": "x"}], {"top_logprobs": 2}),
        ([{"role": "user", "content": "x"}], {"response_format": {"type": "json_object"}}),
        ([{"role": "user", "content": "the " * 200}], {}),
    ],
)
def test_a_bad_chat(http: httpx.Client, messages: list[Any], more: dict[str, Any]) -> None:
    answer = http.post("/v1/chat/completions", json={"messages": messages, **more})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_other_statuses(http: httpx.Client) -> None:
    body = b'{"prompt": "a"}'
    for headers, content, status in (
        ({"content-type": "text/plain"}, body, 415),
        ({"content-type": "application/json"}, b" " * (5 << 20), 413),
    ):
        answer = http.post("/v1/completions", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")
    for method, path, status in (
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/x", 404),
        ("GET", "/v1", 404),
        ("POST", "/generate/", 404),
        ("POST", "//v1/completions", 404),
        ("POST", "/chat/completions", 404),
        ("GET", "/models", 404),
    ):
        answer = http.request(method, path, json={})
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")


def test_more_than_there_is_room_for(client: openai.OpenAI, http: httpx.Client) -> None:
    """Ten sequences run or wait; one more is told to come again."""
    stream = ask(client, n=10, max_tokens=80, stream=True, extra_body={"ignore_eos": True})
    with pytest.raises(openai.RateLimitError) as error:
        ask(client, max_tokens=1)
    assert error.value.response.headers["retry-after"] == "1"
    stream.close()
    become_idle(http)
    assert ask(client, max_tokens=1).choices


def test_a_hundred_clients_that_leave_take_nothing_with_them(
    address: str, client: openai.OpenAI, http: httpx.Client
) -> None:
    before = become_idle(http)
    asked = {"prompt": PROMPT * 2, "max_tokens": 70, "ignore_eos": True}
    for number in range(100):
        stream = number % 4 != 3
        body = json.dumps(asked | {"stream": stream}).encode()
        url = f"{address}/v1/completions"
        leave(url, body, after_bytes=number * 60 if stream else 0, reset=number % 2 == 0)
    after = become_idle(http)
    for name in ("ksa_cache_used_bytes", "ksa_cache_bytes", "ksa_running", "ksa_waiting"):
        assert after[name] == before[name]
    gone = "ksa_requests_total/gone"
    assert after[gone] - before.get(gone, 0) > 50  # the others had their answer when they left
    assert ask(client).choices[0].text


def test_the_metrics_add_up(client: openai.OpenAI, http: httpx.Client, vocabulary: Vocabulary) -> None:
    before = become_idle(http)
    ask(client, max_tokens=20, extra_body={"ignore_eos": True})
    after = become_idle(http)
    assert after["ksa_generated_tokens_total"] - before["ksa_generated_tokens_total"] == 20
    read = after["ksa_prompt_tokens_total"] - before["ksa_prompt_tokens_total"]
    assert read == len(vocabulary.encode(PROMPT))
    name = "ksa_time_to_first_token_seconds_count"
    assert after[name] - before[name] == 1
    assert after["ksa_requests_total/ok"] - before["ksa_requests_total/ok"] == 1
    assert after["ksa_cache_bytes"] > 0


def test_nothing_was_the_service_s_fault(client: openai.OpenAI, log: Path) -> None:
    ask(client, max_tokens=1)
    text = log.read_text()
    assert "Traceback" not in text, text[-3000:]


def how_it_ends(folder: Path, **environment: str) -> str:
    """Start a server that cannot start; return its last line."""
    ended = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", served.TARGET, "--port", "0"],
        env={
            **os.environ,
            "FEEDWORKS_MODEL_DIR": str(folder),
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(folder.with_name("bentoml")),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    return ended.stderr.splitlines()[-1]


def test_a_damaged_package_ends_the_server_with_one_line(tmp_path: Path) -> None:
    folder = served.write_package(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no")
    assert "is not the file that was packaged" in how_it_ends(folder)


def test_a_patience_that_is_none_ends_the_server_with_one_line(tmp_path: Path) -> None:
    folder = served.write_package(tmp_path / "model")
    assert "FEEDWORKS_WAIT: expected seconds above 0, got 'soon'" in how_it_ends(
        folder, FEEDWORKS_WAIT="soon"
    )


def test_a_context_beyond_the_model_ends_the_server_with_one_line(tmp_path: Path) -> None:
    folder = served.write_package(tmp_path / "model")
    assert "FEEDWORKS_CONTEXT=1000000: the model reads " in how_it_ends(folder, FEEDWORKS_CONTEXT="1000000")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"FEEDWORKS_STREAMS": "1000000000"},
            "FEEDWORKS_STREAMS=1000000000 or FEEDWORKS_CONTEXT=96; at most",
        ),
        ({"FEEDWORKS_STREAMS": "0"}, "FEEDWORKS_STREAMS=0: expected at least 1"),
    ],
)
def test_streams_that_cannot_be_end_the_server_with_one_line(
    tmp_path: Path, given: dict[str, str], said: str
) -> None:
    folder = served.write_package(tmp_path / "model")
    assert said in how_it_ends(folder, **given)


def test_a_server_that_ends_tells_why(tmp_path: Path) -> None:
    environment = {"FEEDWORKS_MODEL_DIR": str(tmp_path / "no-model")}
    with (
        pytest.raises(FeedworksError, match=r"ended with code 1: Error: model .*no-model: .*; see .*log"),
        running_server(served.TARGET, environment, tmp_path / "log"),
    ):
        pass
