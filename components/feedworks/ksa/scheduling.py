"""KSA (arXiv 2604.24432): which sequences the model computes next, without threads and clients.

Sequences join and leave between two steps, so that the batch is as full as there is work (continuous
batching). A step reads prompts of some that wait, short ones together and a part of one long one, then adds
a token to all that run. While some run, prompts get a share of the time: what they took, the running ones
get before the next.

Shape letters: B sequences of a step, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from feedworks.errors import FeedworksError
from feedworks.ksa.sampling import Chosen, Sampler, Sampling, choose
from feedworks.ksa.vocabulary import TextStream

if TYPE_CHECKING:
    from feedworks.ksa.cache import KsaCache

Result = TypeVar("Result")
Finish = Literal["stop", "length"]

_log = logging.getLogger(__name__)


class Decoder(Protocol):
    """What is asked of a model, see `feedworks.ksa.model.Qwen3KsaForCausalLM`."""

    @property
    def device(self) -> torch.device:
        """Where it and its cache are."""
        ...

    def prefill(
        self, input_ids_BT: Tensor, lengths: Sequence[int], cache: KsaCache, slots: Sequence[int]
    ) -> Tensor:
        """Read prompts into empty slots; `(B, V)` logits after the last token of each."""
        ...

    def decode(self, token_B: Tensor, cache: KsaCache, slots: Sequence[int]) -> Tensor:
        """Add a token to each slot; `(B, V)` logits after it."""
        ...

    def extend(self, input_ids_T: Tensor, cache: KsaCache, slot: int) -> Tensor:
        """Add several tokens to a slot; `(V,)` logits after the last."""
        ...


class Words(Protocol):
    """What is asked of a vocabulary, see `feedworks.ksa.vocabulary.Vocabulary`."""

    @property
    def eos(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ...

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for."""
        ...


class EngineError(FeedworksError):
    """The model could not answer: it failed, it has no time, or it is shutting down."""


class Job(NamedTuple):
    """One sequence to generate.

    Attributes:
        prompt: tokens, at least one.
        sampling: how tokens are chosen.
        max_tokens: of the answer.
        stop: strings that end it.
        ignore_eos: go on behind an end of text.
        number: tells apart the draws of jobs with the same seed.
    """

    prompt: Sequence[int]
    sampling: Sampling = Sampling()
    max_tokens: int = 16
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    number: int = 0


class Piece(NamedTuple):
    """What one step added to one answer.

    Attributes:
        text: may be empty while a character or a stop string may be incomplete.
        token: the token that was chosen, none where the job failed.
        finish: why the answer ends here.
        error: why there is no answer.
    """

    text: str
    token: Chosen | None = None
    finish: Finish | None = None
    error: EngineError | None = None

    @property
    def last(self) -> bool:
        """Whether nothing comes after it."""
        return self.finish is not None or self.error is not None


@dataclass(eq=False)
class Work:
    """A job and how far it is; compared by identity."""

    job: Job
    sampler: Sampler
    text: TextStream
    born_s: float
    slot: int = -1
    num_read: int = 0
    token: int = -1
    num_tokens: int = 0
    done: bool = False
    told: bool = False

    @classmethod
    def of(cls, job: Job, now_s: float) -> Work:
        """Begin."""
        return cls(job, Sampler(job.sampling, job.prompt, job.number), TextStream(job.stop), now_s)


class Policy(NamedTuple):
    """How prompts and running sequences share the model.

    Attributes:
        prefill_tokens: prompts that are read together have so many tokens at most, padding included.
        part_tokens: a longer prompt is read in parts of this length.
        prefill_share: of the time while others run, above 0, at most 1. The more, the more sequences decode
            side by side and the sooner answers begin; the less, the steadier they run.
        wait_s: a prompt that waited longer is given up.
    """

    prefill_tokens: int = 2048
    part_tokens: int = 512
    prefill_share: float = 0.8
    wait_s: float = 60.0


Outcome = tuple[Work, Piece]


class Scheduler:
    """Runs jobs on a cache, a step at a time; one thread only.

    Args:
        model: on the device of the cache.
        cache: all of its slots are free.
        words: of the model.
        policy: see there.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        model: Decoder,
        cache: KsaCache,
        words: Words,
        policy: Policy | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.cache = cache
        self.waiting: deque[Work] = deque()
        self.running: dict[int, Work] = {}
        self.reading: Work | None = None
        self._model = model
        self._words = words
        self._policy = policy or Policy()
        self._clock = clock
        self._free = sorted(cache.free_slots(), reverse=True)
        self._owed_s = 0.0

    @property
    def busy(self) -> bool:
        """Whether there is work."""
        return bool(self.waiting or self.running or self.reading)

    def add(self, work: Work) -> None:
        """Put a job behind those that wait."""
        self.waiting.append(work)

    def cancel(self, work: Work) -> None:
        """Forget a job; its slot is free at once. One that is done already stays so."""
        if work.done:
            return
        if work.slot < 0:
            self.waiting.remove(work)
        self._end(work)

    def cancel_all(self, error: EngineError) -> list[Outcome]:
        """Give up all jobs."""
        works = [*self.waiting, *self.running.values(), *([self.reading] if self.reading else [])]
        for work in works:
            self.cancel(work)
        return [(work, Piece("", error=error)) for work in works]

    def step(self) -> list[Outcome]:
        """Compute the first token of some that wait, or the next one of all that run."""
        outcomes = self._expired()
        if not self.running or self._owed_s <= 0:
            start_s = self._clock()
            outcomes += self._read_part() + self._read_whole(self._admit())
            share = self._policy.prefill_share
            self._owed_s = (self._clock() - start_s) * (1 - share) / share
        if not outcomes and self.running:  # first tokens do not wait for the second ones
            start_s = self._clock()
            outcomes += self._decode(list(self.running.values()))
            self._owed_s -= self._clock() - start_s
        return outcomes

    def _expired(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        limit_s = self._clock() - self._policy.wait_s
        while self.waiting and self.waiting[0].born_s < limit_s:
            work = self.waiting.popleft()
            self._end(work)
            error = EngineError(f"no room in {self._policy.wait_s:g} s; try again later")
            outcomes.append((work, Piece("", error=error)))
        return outcomes

    def _admit(self) -> list[Work]:
        """Take short prompts in the order of arrival, as many as there are slots and tokens for.

        The first long one becomes the one that is read in parts, if there is none; short ones pass others.
        """
        batch: list[Work] = []
        longest = 0
        for work in list(self.waiting):
            if not self._free:
                break
            length = len(work.job.prompt)
            if length > self._policy.part_tokens:
                if self.reading is not None:
                    continue
                self.reading = work
            else:
                longest = max(longest, length)
                if batch and longest * (len(batch) + 1) > self._policy.prefill_tokens:
                    break
                batch.append(work)
            self.waiting.remove(work)
            work.slot = self._free.pop()
        return batch

    def _read_part(self) -> list[Outcome]:
        """Read the next tokens of the long prompt; its answer begins behind the last ones."""
        if (work := self.reading) is None:
            return []
        part = torch.tensor(work.job.prompt[work.num_read : work.num_read + self._policy.part_tokens])
        work.num_read += len(part)
        whole = work.num_read == len(work.job.prompt)
        logit_V = self._computed(
            [work], lambda: self._model.extend(part.to(self._model.device), self.cache, work.slot)
        )
        if logit_V is not None and not whole:
            return []
        self.reading = None
        return self._begin([work], None if logit_V is None else logit_V[None])

    def _read_whole(self, batch: list[Work]) -> list[Outcome]:
        if not batch:
            return []
        lengths = [len(work.job.prompt) for work in batch]
        token_BT = torch.zeros(len(batch), max(lengths), dtype=torch.int64)
        for b, work in enumerate(batch):
            token_BT[b, : lengths[b]] = torch.tensor(work.job.prompt)
        slots = [work.slot for work in batch]
        logit_BV = self._computed(
            batch,
            lambda: self._model.prefill(token_BT.to(self._model.device), lengths, self.cache, slots),
        )
        if logit_BV is None and len(batch) > 1:  # its slots are empty still: whose fault was it?
            return [outcome for work in batch for outcome in self._read_whole([work])]
        return self._begin(batch, logit_BV)

    def _begin(self, works: list[Work], logit_BV: Tensor | None) -> list[Outcome]:
        self.running |= {work.slot: work for work in works}
        return self._advance(works, logit_BV)

    def _decode(self, works: list[Work]) -> list[Outcome]:
        token_B = torch.tensor([work.token for work in works])
        slots = [work.slot for work in works]
        return self._advance(
            works,
            self._computed(
                works, lambda: self._model.decode(token_B.to(self._model.device), self.cache, slots)
            ),
        )

    def _computed(self, works: list[Work], compute: Callable[[], Result]) -> Result | None:
        """Return what is computed, or None where that failed: then the jobs of this call fail, no other."""
        try:
            with torch.inference_mode():
                return compute()
        except Exception:  # whatever a model may raise, the service goes on
            _log.exception("the model failed on %d sequences", len(works))
            return None

    def _advance(self, works: list[Work], logit_BV: Tensor | None) -> list[Outcome]:
        """Choose a token for each sequence."""
        chosen: Sequence[Chosen | None] | None = None
        if logit_BV is not None:  # an error of a GPU may come to light as late as here
            chosen = self._computed(works, lambda: choose(logit_BV, [work.sampler for work in works]))
        chosen = [None] * len(works) if chosen is None else chosen
        return [(work, self._take(work, token)) for work, token in zip(works, chosen, strict=True)]

    def _take(self, work: Work, chosen: Chosen | None) -> Piece:
        """Add a token to an answer; end the work where it is the last one."""
        if chosen is None:
            self._end(work)
            return Piece("", error=EngineError("the model failed on this request"))
        work.token = chosen.token
        work.num_tokens += 1
        ended = chosen.token in self._words.eos and not work.job.ignore_eos
        full = work.num_tokens >= work.job.max_tokens
        content = b"" if ended else self._words.bytes_of(chosen.token)
        text, stopped = work.text.push(content, last=ended or full)
        finish: Finish | None = "stop" if ended or stopped else "length" if full else None
        if finish:
            self._end(work)
        return Piece(text, chosen, finish)

    def _end(self, work: Work) -> None:
        """Let go of a job and its slot."""
        work.done = True
        if work.slot >= 0:
            self.cache.reset([work.slot])
            self.running.pop(work.slot, None)
            self._free.append(work.slot)
        if self.reading is work:
            self.reading = None
