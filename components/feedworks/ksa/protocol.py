"""KSA (arXiv 2604.24432): what clients may ask, in OpenAI's words where it has them.

Fields that OpenAI knows and this service has no use for are taken where they ask for nothing (`user`,
`store`, ...) and refused where they ask for something it does not do (`tools`, ...). `top_k`, `min_p`,
`repetition_penalty`, `ignore_eos` and a `seed` for completions are additions that other servers have too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from feedworks.errors import FeedworksError
from feedworks.ksa.fields import (
    MAX_CHOICES,
    MAX_PARTS,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    TOKEN_IDS,
    any_prompts,
    at_most,
    checked,
    content_text,
    one_prompt,
    only_first_unknown,
    stop_texts,
)
from feedworks.ksa.sampling import Sampling

MAX_TOP = 20
MAX_BIASES = 1024
MAX_MESSAGES = 4096
MAX_METADATA = 16
TokenId = Annotated[int, Field(ge=0, lt=TOKEN_IDS)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[
    str | list[str] | None,
    checked(stop_texts, StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None),
]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Biases = Annotated[
    dict[Annotated[int, Field(strict=False, ge=0)], Bias],
    Field(max_length=MAX_BIASES),
    BeforeValidator(at_most(MAX_BIASES, "tokens")),
]
Prompt = Annotated[str | list[int], checked(one_prompt, str | list[TokenId])]
Prompts = Annotated[
    str | list[int] | list[str] | list[list[int]],
    checked(
        any_prompts,
        str
        | list[TokenId]
        | Annotated[list[str], Field(max_length=MAX_CHOICES)]
        | Annotated[list[list[TokenId]], Field(max_length=MAX_CHOICES)],
    ),
]


class RequestError(FeedworksError):
    """A request that is refused, as OpenAI's error objects have it.

    Args:
        message: for people.
        status: HTTP status.
        param: the field that is at fault.
        code: for machines, such as `context_length_exceeded`.
        kind: `invalid_request_error`, `rate_limit_error` or `server_error`.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.kind = kind

    def body(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


class Strict(BaseModel):
    """No unknown fields, no text for numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_is_enough(cls, value: Any) -> Any:
        return only_first_unknown(value, cls.model_fields)


class StreamOptions(Strict):
    """What a stream has beside its text."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Sampled(Strict):
    """How tokens are chosen, and when an answer ends."""

    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        None, description="0 takes the likeliest token; without it 1"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="share of probability kept")
    top_k: Annotated[int, Field(ge=0)] | None = Field(None, description="likeliest tokens kept, 0 keeps all")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="tokens kept have this share of the likeliest one's probability"
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(None, description="of the draws")
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    logit_bias: Biases | None = None
    stop: Stops = Field(None, description="texts that end the answer and are no part of it")
    ignore_eos: bool = Field(False, description="go on behind the end of a text")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="of the answer")
    stream: bool | None = Field(None, description="server-sent events, one for each token")

    def stops(self) -> list[str]:
        """Texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    def sampling(self, num_logprobs: int | None = None) -> Sampling:
        """Settings of the choice of tokens."""
        names = ("temperature", "top_p", "top_k", "min_p", "seed", "logit_bias")
        penalties = ("presence_penalty", "frequency_penalty", "repetition_penalty")
        given = {name: getattr(self, name) for name in (*names, *penalties)}
        return Sampling(
            num_logprobs=num_logprobs, **{name: value for name, value in given.items() if value is not None}
        )


class OpenAiRequest(Sampled):
    """Fields of both of OpenAI's requests."""

    model: str | None = Field(None, description="as GET /v1/models names it")
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(None, description="answers per prompt")
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream=true")
        return self


class CompletionRequest(OpenAiRequest):
    """POST /v1/completions."""

    prompt: Prompts = Field(description="one or several texts, or their tokens")
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = Field(
        None, description="likeliest tokens to report at each place, beside the chosen one"
    )
    echo: bool | None = Field(None, description="the prompt is the beginning of the answer")
    best_of: int | None = None
    suffix: Literal[""] | None = None

    @model_validator(mode="after")
    def _only_what_is_done(self) -> Self:
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of: every answer is returned, expected the same as n")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo: log-probabilities of a prompt are not computed")
        return self

    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or tokens."""
        if isinstance(self.prompt, str) or not self.prompt or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)


class TextPart(Strict):
    """A part of a message's content; text is the only kind."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str, checked(content_text, str | Annotated[list[TextPart], Field(max_length=MAX_PARTS)])
    ]
    name: str | None = None
    refusal: None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[list[Any], Field(max_length=0), BeforeValidator(at_most(0, "calls"))] | None = None

    def plain(self) -> dict[str, Any]:
        """As a chat template takes it."""
        # Templates know the older name of the same role.
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class TextFormat(Strict):
    """The only response format."""

    type: Literal["text"]


class ChatRequest(OpenAiRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[
        list[Message],
        Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
        BeforeValidator(at_most(MAX_MESSAGES, "messages")),
    ]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    tools: Annotated[list[Any], Field(max_length=0), BeforeValidator(at_most(0, "tools"))] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    metadata: (
        Annotated[
            dict[str, str],
            Field(max_length=MAX_METADATA),
            BeforeValidator(at_most(MAX_METADATA, "pairs")),
        ]
        | None
    ) = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None

    @model_validator(mode="after")
    def _top_of_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs=true")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens to report."""
        return (self.top_logprobs or 0) if self.logprobs else None


class GenerateRequest(Sampled):
    """POST /generate."""

    prompt: Prompt = Field(description="a text, or its tokens")


class Generated(BaseModel):
    """The answer of POST /generate."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    model_tag: str
