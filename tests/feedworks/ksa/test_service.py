"""The service as clients have it: `bentoml serve` in a process of its own, asked by OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from feedworks.ksa.vocabulary import Vocabulary
from feedworks.serving.server import running_server

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


def metrics(http: httpx.Client) -> dict[str, float]:
    families = text_string_to_metric_families(http.get("/metrics").text)
    found: dict[str, float] = {}
    for sample in (sample for family in families for sample in family.samples):
        if sample.name.startswith("ksa_") and not sample.name.endswith("_bucket"):
            name = sample.name + (f"/{sample.labels['outcome']}" if "outcome" in sample.labels else "")
            found[name] = found.get(name, 0) + sample.value
    return found


def test_a_greedy_answer_is_the_model_s(client: openai.OpenAI, vocabulary: Vocabulary) -> None:
    answer = client.completions.create(model="ksa", prompt=PROMPT, max_tokens=30, temperature=0)
    expected = served.alone(vocabulary.encode(PROMPT), 30)
    assert answer.choices[0].text == vocabulary.text(expected)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(vocabulary.encode(PROMPT))
    assert answer.usage.completion_tokens == len(expected)
    assert answer.choices[0].finish_reason == ("stop" if expected[-1] == served.EOS else "length")


def test_a_stream_puts_together_the_same(client: openai.OpenAI, vocabulary: Vocabulary) -> None:
    whole = client.completions.create(model="ksa", prompt=PROMPT, max_tokens=30, temperature=0)
    chunks = list(
        client.completions.create(
            model="ksa",
            prompt=PROMPT,
            max_tokens=30,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert len(chunks) > 5
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
