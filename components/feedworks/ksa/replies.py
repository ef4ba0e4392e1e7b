"""KSA (arXiv 2604.24432): answers in OpenAI's words, whole or bit by bit."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from feedworks.ksa.sampling import Chosen
from feedworks.ksa.scheduling import Finish, Piece
from feedworks.ksa.vocabulary import Vocabulary


@dataclass
class Answer:
    """One answer as far as it is there."""

    text: str = ""
    finish: Finish | None = None
    num_tokens: int = 0
    tokens: list[Chosen] = field(default_factory=list)

    def add(self, piece: Piece, shown: Sequence[Chosen]) -> None:
        """Take a piece; `shown` of it is reported."""
        self.text += piece.text
        self.finish = piece.finish
        self.num_tokens += piece.token is not None
        self.tokens += shown


class Reply(ABC):
    """Makes the answer to one request.

    Args:
        vocabulary: of the model.
        model: its name.
        num_prompt_tokens: of all prompts of the request.
        num_answers: of the request.
        usage: a stream tells the numbers of tokens at its end.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        model: str,
        num_prompt_tokens: int,
        num_answers: int = 1,
        usage: bool = False,
    ) -> None:
        self.answers = [Answer() for _ in range(num_answers)]
        self._vocabulary = vocabulary
        self._model = model
        self._num_prompt_tokens = num_prompt_tokens
        self._usage = usage

    def events(self, number: int, piece: Piece) -> Iterator[bytes]:
        """Take a piece of an answer; yield what a stream sends of it, mostly one object."""
        shown = self._shown(piece)
        answer = self.answers[number]
        answer.add(piece, shown)
        if piece.text or shown or piece.finish:
            yield from map(_dump, self._chunks(number, piece, shown))

    def take(self, number: int, piece: Piece) -> None:
        """Take a piece of an answer that is sent as a whole."""
        self.answers[number].add(piece, self._shown(piece))

    def opening(self) -> Iterator[bytes]:
        """Yield what a stream begins with."""
        return iter(())

    def closing(self) -> Iterator[bytes]:
        """Yield what a stream ends with."""
        return iter(())

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """Return the whole answer."""

    @abstractmethod
    def _chunks(self, number: int, piece: Piece, shown: Sequence[Chosen]) -> Iterator[dict[str, Any]]:
        """Yield what a stream sends of a piece."""

    def _shown(self, piece: Piece) -> list[Chosen]:
        """Return the token of a piece where it is to be reported: an end of text is none of the answer."""
        token = piece.token
        if token is None or token.logprob is None:
            return []
        ended = piece.finish == "stop" and token.token in self._vocabulary.eos
        return [] if ended else [token]

    def usage(self) -> dict[str, int]:
        """Return the numbers of tokens."""
        written = sum(answer.num_tokens for answer in self.answers)
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self._num_prompt_tokens + written,
        }


class GenerateReply(Reply):
    """Of POST /generate."""

    def whole(self) -> dict[str, Any]:
        """Return the fields of `feedworks.ksa.protocol.Generated`."""
        return {"text": self.answers[0].text} | self._end()

    def _chunks(self, number: int, piece: Piece, shown: Sequence[Chosen]) -> Iterator[dict[str, Any]]:
        yield {"text": piece.text} | (self._end() if piece.finish else {})

    def _end(self) -> dict[str, Any]:
        usage = self.usage()
        del usage["total_tokens"]
        return {"finish_reason": self.answers[0].finish, **usage, "model_tag": self._model}


class OpenAiReply(Reply):
    """What completions and chats have in common."""

    prefix, kind, chunk_kind = "", "", ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def closing(self) -> Iterator[bytes]:
        """Yield the numbers of tokens where they were asked for."""
        if self._usage:
            yield _dump(self._object(self.chunk_kind, []) | {"usage": self.usage()})

    def whole(self) -> dict[str, Any]:
        """Return the object of an answer that is not streamed."""
        choices = [self._choice(number, answer) for number, answer in enumerate(self.answers)]
        return self._object(self.kind, choices) | {"usage": self.usage()}

    @abstractmethod
    def _choice(self, number: int, answer: Answer) -> dict[str, Any]: ...

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return head | {"choices": choices}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._object(self.chunk_kind, [choice]) | ({"usage": None} if self._usage else {})


class CompletionReply(OpenAiReply):
    """Of POST /v1/completions.

    Args:
        args: see `Reply`.
        echoes: text that each answer begins with.
        kwargs: see `Reply`.
    """

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, *args: Any, echoes: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._echoes = echoes
        self._places = [_Places(len(text)) for text in echoes]

    def opening(self) -> Iterator[bytes]:
        """Yield the prompts where they are to be echoed."""
        for number, text in enumerate(self._echoes):
            if text:
                yield _dump(self._chunk(_completion(number, text, None, None)))

    def _chunks(self, number: int, piece: Piece, shown: Sequence[Chosen]) -> Iterator[dict[str, Any]]:
        logprobs = self._logprobs(number, shown) if shown else None
        yield self._chunk(_completion(number, piece.text, logprobs, piece.finish))

    def _choice(self, number: int, answer: Answer) -> dict[str, Any]:
        logprobs = self._logprobs(number, answer.tokens) if answer.tokens else None
        return _completion(number, self._echoes[number] + answer.text, logprobs, answer.finish)

    def _logprobs(self, number: int, tokens: Sequence[Chosen]) -> dict[str, Any]:
        return {
            "tokens": [self._vocabulary.name(each.token) for each in tokens],
            "token_logprobs": [each.logprob for each in tokens],
            "top_logprobs": [
                {self._vocabulary.name(token): logprob for token, logprob in each.top} for each in tokens
            ],
            "text_offset": [
                self._places[number].next(self._vocabulary.bytes_of(each.token)) for each in tokens
            ],
        }


class _Places:
    """At which character of an answer its tokens begin; a character may have several tokens."""

    def __init__(self, start: int) -> None:
        self._count = start
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def next(self, content: bytes) -> int:
        """Return the place of the next token."""
        place = self._count
        self._count += len(self._decoder.decode(content))
        return place


class ChatReply(OpenAiReply):
    """Of POST /v1/chat/completions."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> Iterator[bytes]:
        """Yield the role of each answer."""
        for number in range(len(self.answers)):
            delta = {"role": "assistant", "content": ""}
            yield _dump(self._chunk(_delta(number, delta, None, None)))

    def _chunks(self, number: int, piece: Piece, shown: Sequence[Chosen]) -> Iterator[dict[str, Any]]:
        logprobs = self._logprobs(shown) if shown else None
        if piece.text or logprobs:
            yield self._chunk(_delta(number, {"content": piece.text}, logprobs, None))
        if piece.finish:
            yield self._chunk(_delta(number, {}, None, piece.finish))

    def _choice(self, number: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": number,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(answer.tokens) if answer.tokens else None,
            "finish_reason": answer.finish,
        }

    def _logprobs(self, tokens: Sequence[Chosen]) -> dict[str, Any]:
        content = [
            self._token(each.token, each.logprob or 0.0)
            | {"top_logprobs": [self._token(token, logprob) for token, logprob in each.top]}
            for each in tokens
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        content = list(self._vocabulary.bytes_of(token))
        return {"token": self._vocabulary.name(token), "logprob": logprob, "bytes": content}


def _completion(
    number: int, text: str, logprobs: dict[str, Any] | None, finish: Finish | None
) -> dict[str, Any]:
    return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _delta(
    number: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish: Finish | None
) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
