"""KSA (arXiv 2604.24432): the service without its framework: from the body of a request to its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from pydantic import ValidationError

from feedworks.ksa.engine import Engine
from feedworks.ksa.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerateRequest,
    RequestError,
    Sampled,
)
from feedworks.ksa.replies import ChatReply, CompletionReply, GenerateReply, Reply
from feedworks.ksa.sampling import Sampling
from feedworks.ksa.scheduling import EngineError, Job
from feedworks.ksa.settings import PackageConfig
from feedworks.ksa.vocabulary import TemplateError, Vocabulary
from feedworks.serving.batching import OverloadedError

DEFAULT_TOKENS = 16  # OpenAI's default for completions
# Below it a text costs the event loop less than the way to a thread and back.
INLINE_CHARACTERS = 2000
NAME = "ksa"


class Call(NamedTuple):
    """A request that has been understood."""

    jobs: Sequence[Job]
    reply: Reply
    stream: bool
    ends_with_done: bool = True


class Answering:
    """Understands requests and answers them by one engine; on one event loop.

    Args:
        engine: of the model.
        vocabulary: of the model.
        tag: names the model.
        limits: of the package.
        vocab_size: tokens of the model, which may be more than the tokenizer's.
    """

    def __init__(
        self, engine: Engine, vocabulary: Vocabulary, tag: str, limits: PackageConfig, vocab_size: int
    ) -> None:
        self.engine = engine
        self.vocabulary = vocabulary
        self.tag = tag
        self.limits = limits
        self._vocab_size = vocab_size
        self._encoders = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenizer")
        self._prepare: dict[str, Callable[[bytes], Any]] = {
            "/generate": self._generate,
            "/v1/completions": self._completion,
            "/v1/chat/completions": self._chat,
        }

    async def prepare(self, path: str, body: bytes) -> Call:
        """Understand a request.

        Args:
            path: where it was sent, one of `PATHS`.
            body: JSON.

        Raises:
            RequestError: it cannot be answered.
        """
        try:
            call: Call = await self._prepare[path](body)
        except ValidationError as error:
            raise _explained(error) from None
        except TemplateError as error:
            raise RequestError(str(error), param="messages") from None
        return call

    async def whole(self, call: Call) -> dict[str, Any]:
        """Answer a request as a whole.

        Raises:
            RequestError: there is no room, or the model failed.
        """
        async for number, piece in self._pieces(call):
            call.reply.take(number, piece)
        return call.reply.whole()

    async def events(self, call: Call) -> AsyncIterator[bytes]:
        """Answer a request bit by bit.

        Raises:
            RequestError: as `whole`; before the first event, or in the middle.
        """
        begun = False
        async for number, piece in self._pieces(call):
            if not begun:
                begun = True
                for event in call.reply.opening():
                    yield event
            for event in call.reply.events(number, piece):
                yield event
        for event in call.reply.closing():
            yield event

    def close(self) -> None:
        """Give up all requests and end the threads."""
        self.engine.close()
        self._encoders.shutdown(wait=False, cancel_futures=True)

    async def _pieces(self, call: Call) -> AsyncIterator[Any]:
        try:
            ticket = self.engine.submit(call.jobs)
        except OverloadedError as error:
            raise RequestError(str(error), status=429, code="overloaded", kind="rate_limit_error") from None
        except EngineError as error:
            raise _unavailable(error) from None
        try:
            async for pair in ticket:
                yield pair
        except EngineError as error:
            raise _unavailable(error) from None
        finally:
            ticket.cancel()

    async def _generate(self, body: bytes) -> Call:
        return await self.generation(GenerateRequest.model_validate_json(body))

    async def generation(self, request: GenerateRequest) -> Call:
        """Understand a request to POST /generate.

        Raises:
            RequestError: it cannot be answered.
        """
        prompt = await self._tokens(request.prompt)
        jobs = self._jobs(request, [prompt], 1, request.sampling(), None)
        reply = GenerateReply(self.vocabulary, self.tag, len(prompt))
        return Call(jobs, reply, bool(request.stream), ends_with_done=False)

    async def _completion(self, body: bytes) -> Call:
        request = CompletionRequest.model_validate_json(body)
        self._require_model(request.model)
        texts = request.prompts()
        if not texts:
            raise RequestError("prompt: expected at least one", param="prompt")
        prompts = [await self._tokens(text) for text in texts]
        n = request.n or 1
        jobs = self._jobs(request, prompts, n, request.sampling(request.logprobs), DEFAULT_TOKENS)
        echoes = [
            (text if isinstance(text, str) else self.vocabulary.text(text)) if request.echo else ""
            for text in texts
            for _ in range(n)
        ]
        reply = CompletionReply(
            self.vocabulary, self.tag, sum(map(len, prompts)), len(jobs), request.wants_usage, echoes=echoes
        )
        return Call(jobs, reply, bool(request.stream))

    async def _chat(self, body: bytes) -> Call:
        request = ChatRequest.model_validate_json(body)
        self._require_model(request.model)
        text = self.vocabulary.chat_text([message.plain() for message in request.messages])
        prompt = await self._tokens(text, "messages", special=False)
        if request.max_completion_tokens is not None:
            request.max_tokens = request.max_completion_tokens
        n = request.n or 1
        jobs = self._jobs(request, [prompt], n, request.sampling(request.num_logprobs), None, "messages")
        reply = ChatReply(self.vocabulary, self.tag, len(prompt), n, request.wants_usage)
        return Call(jobs, reply, bool(request.stream))

    def _require_model(self, model: str | None) -> None:
        if model not in (None, NAME, self.tag):
            raise RequestError(
                f"the model {str(model)[:200]!r} does not exist; this one is {self.tag!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    async def _tokens(
        self, text: str | Sequence[int], param: str = "prompt", *, special: bool = True
    ) -> Sequence[int]:
        """Tokenise a prompt, a long one in a thread, and check it."""
        if not isinstance(text, str):
            tokens: Sequence[int] = text
        elif len(text) <= INLINE_CHARACTERS:
            tokens = self.vocabulary.encode(text, special=special)
        else:
            loop = asyncio.get_running_loop()
            tokens = await loop.run_in_executor(
                self._encoders, lambda: self.vocabulary.encode(text, special=special)
            )
        if not tokens:
            raise RequestError(f"{param}: expected at least one token", param=param)
        if max(tokens) >= self._vocab_size:
            raise RequestError(f"{param}: tokens are below {self._vocab_size}", param=param)
        return tokens

    def _jobs(
        self,
        request: Sampled,
        prompts: Sequence[Sequence[int]],
        n: int,
        sampling: Sampling,
        default_tokens: int | None,
        param: str = "prompt",
    ) -> list[Job]:
        if any(token >= self._vocab_size for token in sampling.logit_bias):
            raise RequestError(f"logit_bias: tokens are below {self._vocab_size}", param="logit_bias")
        if len(prompts) * n > self.engine.max_jobs:
            raise RequestError(
                f"n: at most {self.engine.max_jobs} answers to one request, of all prompts together",
                param="n",
            )
        jobs = []
        for prompt in prompts:
            max_tokens = self._max_tokens(len(prompt), request.max_tokens, default_tokens, param)
            for number in range(n):
                stop = tuple(request.stops())
                jobs.append(Job(prompt, sampling, max_tokens, stop, request.ignore_eos, number))
        return jobs

    def _max_tokens(self, num_prompt: int, wanted: int | None, default: int | None, param: str) -> int:
        """Check the lengths of a prompt and its answer; return that of the answer."""
        limits = self.limits
        if wanted is not None and wanted > limits.max_new_tokens:
            got = f", got {wanted}" if wanted < 10**12 else ""
            raise RequestError(
                f"max_tokens: an answer has at most {limits.max_new_tokens} tokens{got}",
                param="max_tokens",
                code="invalid_value",
            )
        room = limits.max_context - num_prompt
        if room < (wanted or 1):
            asked = "" if wanted is None else f" and {wanted} for the answer"
            raise RequestError(
                f"this model's maximum context length is {limits.max_context} tokens, the request has "
                f"{num_prompt} in the prompt{asked}; please reduce the length",
                param=param,
                code="context_length_exceeded",
            )
        if wanted is None:
            return min(room, limits.max_new_tokens, default or room)
        return wanted


def _explained(error: ValidationError) -> RequestError:
    """The first of the errors; a body of 4 MB can hold 400,000."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = [str(part) for part in first["loc"]]
    reason = first["msg"].removeprefix("Value error, ")
    param = place[0] if place else reason.partition(":")[0] if first["type"] == "value_error" else None
    unknown = first["type"] == "extra_forbidden"
    return RequestError(
        ": ".join(filter(None, [".".join(place), reason]))[:500],
        param=param,
        code="unknown_parameter" if unknown else None,
    )


def _unavailable(error: EngineError) -> RequestError:
    return RequestError(str(error), status=503, code="unavailable", kind="server_error")
