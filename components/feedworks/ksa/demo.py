"""KSA (arXiv 2604.24432): what the demo asks the service of a packaged model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_CHARACTERS = 400
MAX_TOKENS = 48


def ask(post: Callable[[str, dict[str, Any]], dict[str, Any]], data: Path) -> list[str]:
    """Have the beginning of a held-out document continued and return text and continuation as lines.

    Args:
        post: takes a path of the service and a JSON object, returns the answer's.
        data: the text data folder of the run.
    """
    prompt = beginning(data)
    body = {"prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0.0}
    answer = post("/v1/completions", body)
    choice, usage = answer["choices"][0], answer["usage"]
    return [
        f"a held-out text begins: {' '.join(prompt.split())}",
        f"the service goes on (model {answer['model']}):",
        f"  {' '.join(choice['text'].split())}",
        f"{usage['prompt_tokens']} tokens read, {usage['completion_tokens']} written, "
        f"ended by {choice['finish_reason']}",
    ]


def beginning(data: Path) -> str:
    """Return the first characters of the first test document of a text data folder, up to a whole word."""
    from feedworks.ksa.corpus import read_documents

    text = next(document.text for document in read_documents(data, "test"))
    return text[:MAX_CHARACTERS].rpartition(" ")[0] if len(text) > MAX_CHARACTERS else text
