"""Continuous batching: every sequence as if it were alone, slots that come free, one that fails alone."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from feedworks.ksa import scheduling
from feedworks.ksa.cache import KsaCache
from feedworks.ksa.engine import Engine, Ticket, _Rate
from feedworks.ksa.sampling import Sampling
from feedworks.ksa.scheduling import EngineError, Job, Policy, Scheduler, Work
from feedworks.ksa.vocabulary import Vocabulary
from feedworks.serving.batching import OverloadedError

from . import served
from .decoders import tokens


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


GREEDY = Sampling(temperature=0)
LENGTHS = (1, 3, 8, 17, 30, 2, 25, 9, 4)
PROMPTS = [tokens(length, seed=seed).tolist() for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return Vocabulary(served.write_tokenizer(tmp_path_factory.mktemp("engine")))


@pytest.fixture
def engine(vocabulary: Vocabulary) -> Iterator[Engine]:
    made = Engine(served.model(), served.cache(), vocabulary, max_waiting=8)
    yield made
    made.close()


class Moody:
    """The model, but for a token that it cannot stand, and slow if it is told to be."""

    def __init__(self, hated: int = -1, slow_s: float = 0.0) -> None:
        self.device = torch.device("cpu")
        self.hated = hated
        self.slow_s = slow_s
        self.calls: list[str] = []

    def _mind(self, name: str, token: Tensor) -> None:
        self.calls.append(f"{name}{token.numel()}")
        time.sleep(self.slow_s)
        if (token == self.hated).any():
            raise RuntimeError("no")

    def prefill(self, token: Tensor, lengths: Sequence[int], cache: KsaCache, slots: Sequence[int]) -> Tensor:
        self._mind("p", token)
        return served.model().prefill(token, lengths, cache, slots)

    def decode(self, token: Tensor, cache: KsaCache, slots: Sequence[int]) -> Tensor:
        self._mind("d", token)
        return served.model().decode(token, cache, slots)

    def extend(self, token: Tensor, cache: KsaCache, slot: int) -> Tensor:
        self._mind("e", token)
        return served.model().extend(token, cache, slot)


def job(prompt: Sequence[int], max_tokens: int = 40, **more: Any) -> Job:
    return Job(prompt, more.pop("sampling", GREEDY), max_tokens, **more)


async def said(ticket: Ticket) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    async for number, piece in ticket:
        assert piece.token is not None
        found.setdefault(number, []).append(piece.token.token)
    return found


def idle(engine: Engine) -> bool:
    load = engine.load()
    return (load.waiting, load.running, load.used_bytes) == (0, 0, 0)


async def become_idle(engine: Engine) -> None:
    async with asyncio.timeout(20):
        while not idle(engine):
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("policy", [Policy(), Policy(part_tokens=5, prefill_tokens=24)])
def test_every_sequence_is_as_if_alone(vocabulary: Vocabulary, policy: Policy) -> None:
    """Nine of unequal lengths on four slots, over several wraps of the rings."""
    expected = [served.alone(prompt, 40) for prompt in PROMPTS]
    scheduler = Scheduler(served.model(), served.cache(), vocabulary, policy)
    works = [Work.of(job(prompt), time.perf_counter()) for prompt in PROMPTS]
    found: dict[Work, list[int]] = {work: [] for work in works}
    for work in works[:6]:
        scheduler.add(work)
    for step in range(1000):
        if step == 7:
            for work in works[6:]:
                scheduler.add(work)
        for work, piece in scheduler.step():
            assert piece.token is not None
            found[work].append(piece.token.token)
        assert len(scheduler.running) + (scheduler.reading is not None) <= served.LIMITS.max_streams
        if not scheduler.busy:
            break
    assert list(found.values()) == expected
    assert scheduler.cache.used_bytes() == 0
    assert len(scheduler.cache.free_slots()) == served.LIMITS.max_streams


@in_loop
async def test_clients_side_by_side(engine: Engine) -> None:
    expected = [served.alone(prompt, 30) for prompt in PROMPTS]
    answers = await asyncio.gather(*(said(engine.submit([job(prompt, 30)])) for prompt in PROMPTS))
    assert [answer[0] for answer in answers] == expected
    together = await said(engine.submit([job(prompt, 30) for prompt in PROMPTS]))
    assert [together[number] for number in range(len(PROMPTS))] == expected
    assert idle(engine)


@in_loop
async def test_a_long_prompt_does_not_stall_those_that_run(vocabulary: Vocabulary) -> None:
    """Between two parts of a long prompt the running sequence gets tokens."""
    model = Moody()
    policy = Policy(part_tokens=8, prefill_share=0.5)
    scheduler = Scheduler(model, served.cache(), vocabulary, policy, clock=iter(range(10**6)).__next__)
    runs = Work.of(job([5, 6, 7], 40, ignore_eos=True), 0)
    scheduler.add(runs)
    scheduler.step()
    scheduler.add(Work.of(job(tokens(60).tolist(), 2, ignore_eos=True), 0))
    model.calls.clear()
    while len(scheduler.waiting) or scheduler.reading:
        scheduler.step()
    parts = [place for place, call in enumerate(model.calls) if call.startswith("e")]
    assert [model.calls[place] for place in parts] == ["e8"] * 7 + ["e4"]
    assert all(model.calls[place + 1] == "d1" for place in parts[:-1])


def test_stop_strings_eos_and_lengths(vocabulary: Vocabulary) -> None:
    prompt = vocabulary.encode("the old sea")
    plain = served.alone(prompt, 40)
    text = vocabulary.text(plain)

    def run(**more: Any) -> tuple[str, str | None, int]:
        scheduler = Scheduler(served.model(), served.cache(), vocabulary)
        scheduler.add(Work.of(job(prompt, **more), time.perf_counter()))
        pieces = []
        while scheduler.busy:
            pieces += [piece for _, piece in scheduler.step()]
        return "".join(piece.text for piece in pieces), pieces[-1].finish, len(pieces)

    assert run(max_tokens=5) == (vocabulary.text(plain[:5]), "length", 5)
    cut = vocabulary.text(plain[:5])  # what may begin a stop string is not kept back for ever
    assert run(max_tokens=5, stop=(cut[-1] + "\0",)) == (cut, "length", 5)
    at = len(text) // 2
    stopped, why, _ = run(stop=("never said", text[at : at + 2]))
    assert (stopped, why) == (text[: text.index(text[at : at + 2])], "stop")
    bias = {served.EOS: 100.0}
    assert run(sampling=Sampling(temperature=0, logit_bias=bias)) == ("", "stop", 1)
    assert run(sampling=Sampling(temperature=0, logit_bias=bias), ignore_eos=True) == ("", "length", 40)


@in_loop
async def test_cancellation_at_any_moment_frees_everything(engine: Engine) -> None:
    for pause in range(0, 30, 4):
        ticket = engine.submit([job(prompt, 60, ignore_eos=True) for prompt in PROMPTS[:5]])
        seen = 0
        if pause:
            async for _ in ticket:
                seen += 1
                if seen == pause:
                    break
        ticket.cancel()
        ticket.cancel()
    await become_idle(engine)
    assert (await said(engine.submit([job(PROMPTS[3])])))[0] == served.alone(PROMPTS[3], 40)


@in_loop
async def test_a_full_queue_refuses_and_recovers(engine: Engine) -> None:
    ticket = engine.submit([job([1], 60, ignore_eos=True) for _ in range(engine.max_jobs)])
    with pytest.raises(OverloadedError, match="try again"):
        engine.submit([job([1])])
    ticket.cancel()
    await become_idle(engine)
    assert await said(engine.submit([job(PROMPTS[0], 3)]))


@in_loop
async def test_who_waits_too_long_is_told(vocabulary: Vocabulary) -> None:
    engine = Engine(
        Moody(slow_s=0.02), served.cache(num_slots=1), vocabulary, policy=Policy(wait_s=0.1), max_waiting=4
    )
    first = engine.submit([job([1], 60, ignore_eos=True)])
    with pytest.raises(EngineError, match="no room"):
        await said(engine.submit([job([2])]))
    assert len((await said(first))[0]) == 60
    engine.close()


@pytest.mark.parametrize("prompt", [[4, 9, 4], [*tokens(20).tolist()[:-1], 9]])
@in_loop
async def test_a_prompt_that_breaks_the_model_breaks_itself_alone(
    vocabulary: Vocabulary, prompt: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(Moody(hated=9), served.cache(), vocabulary, policy=Policy(part_tokens=6))
    never_9 = Sampling(temperature=0, logit_bias={9: -100.0})
    running = engine.submit([job([3, 1], 50, ignore_eos=True, sampling=never_9)])
    with pytest.raises(EngineError, match="failed"):
        await said(engine.submit([job(prompt)]))
    assert len((await said(running))[0]) == 50
    await become_idle(engine)
    engine.close()
    assert "the model failed" in caplog.text


@in_loop
async def test_nan_fails_one_request_alone(vocabulary: Vocabulary) -> None:
    class Broken(Moody):
        def decode(self, token: Tensor, cache: KsaCache, slots: Sequence[int]) -> Tensor:
            logit_BV = super().decode(token, cache, slots)
            logit_BV[token == 9] = torch.nan
            return logit_BV

    engine = Engine(Broken(), served.cache(), vocabulary)
    say_9 = Sampling(temperature=0, logit_bias={9: 100.0})
    never_9 = Sampling(temperature=0, logit_bias={9: -100.0})
    bad = engine.submit([job([1, 2], 20, sampling=say_9)])
    good = engine.submit([job([1, 2], 20, sampling=never_9, ignore_eos=True)])
    assert len((await said(good))[0]) == 20
    with pytest.raises(EngineError):
        await said(bad)
    engine.close()


@in_loop
async def test_a_closed_engine_tells_everyone(vocabulary: Vocabulary) -> None:
    engine = Engine(Moody(slow_s=0.01), served.cache(num_slots=1), vocabulary)
    tickets = [engine.submit([job([1], 90, ignore_eos=True)]) for _ in range(3)]
    await asyncio.sleep(0.05)
    engine.close()
    for ticket in tickets:
        with pytest.raises(EngineError, match="shutting down"):
            await said(ticket)
    with pytest.raises(EngineError, match="shutting down"):
        engine.submit([job([1])])


@pytest.mark.parametrize(("share", "between"), [(0.25, 3), (0.5, 1), (1.0, 1)])
def test_prompts_get_their_share_of_the_time(vocabulary: Vocabulary, share: float, between: int) -> None:
    """Every part and every step takes a second; a step at least comes between two parts."""
    model = Moody()
    policy = Policy(part_tokens=8, prefill_share=share)
    scheduler = Scheduler(model, served.cache(), vocabulary, policy, clock=iter(range(10**6)).__next__)
    scheduler.add(Work.of(job([5, 6, 7], ignore_eos=True), 0))
    scheduler.step()
    scheduler.add(Work.of(job(tokens(60).tolist(), 1), 0))
    while scheduler.waiting or scheduler.reading:
        scheduler.step()
    names = "".join(call[0] for call in model.calls)
    assert names.split("e")[1:-1] == ["d" * between] * 7


def test_prompts_that_are_read_together_are_few_enough_with_their_padding(vocabulary: Vocabulary) -> None:
    model = Moody()
    scheduler = Scheduler(model, served.cache(), vocabulary, Policy(prefill_tokens=24), clock=lambda: 0.0)
    for length in (3, 8, 8, 1):
        scheduler.add(Work.of(job(tokens(length).tolist(), 1), 0))
    while scheduler.busy:
        scheduler.step()
    assert model.calls == ["p24", "p1"]


def test_a_prompt_that_is_cancelled_between_two_parts_is_read_no_further(vocabulary: Vocabulary) -> None:
    scheduler = Scheduler(
        served.model(), served.cache(), vocabulary, Policy(part_tokens=8), clock=lambda: 0.0
    )
    work = Work.of(job(tokens(60).tolist()), 0)
    scheduler.add(work)
    while not scheduler.cache.used_bytes():
        scheduler.step()
    assert scheduler.reading is work
    scheduler.cancel(work)
    assert not scheduler.busy
    assert scheduler.cache.used_bytes() == 0
    assert len(scheduler.cache.free_slots()) == served.LIMITS.max_streams
    assert scheduler.step() == []


def test_tokens_per_second_are_those_of_the_last_whole_second() -> None:
    rate = _Rate()
    rate._start_s = 100.0
    found = [rate.add(*each) for each in ((10, 100.5), (30, 102.0), (1, 102.5), (5, 103.0))]
    assert found == [20, 20, 20, 6]


@in_loop
async def test_what_breaks_while_tokens_are_chosen_breaks_those_alone(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scheduling.choose

    def choose(logit_BV: Tensor, samplers: Sequence[Any]) -> Any:
        if any(sampler.sampling.seed == 13 for sampler in samplers):
            raise RuntimeError("out of memory")
        return real(logit_BV, samplers)

    monkeypatch.setattr(scheduling, "choose", choose)
    engine = Engine(served.model(), served.cache(), vocabulary)
    with pytest.raises(EngineError, match="failed"):
        await said(engine.submit([job([4, 9], sampling=Sampling(seed=13))]))
    assert engine.alive
    assert await said(engine.submit([job(PROMPTS[0], 3)]))
    await become_idle(engine)
    engine.close()
    assert not engine.alive


@in_loop
async def test_a_breakdown_is_told_to_all_that_a_step_had_in_its_hands(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Scheduler, works: Sequence[Work]) -> list[Any]:
        raise MemoryError

    monkeypatch.setattr(Scheduler, "_read_whole", broken)
    engine = Engine(served.model(), served.cache(), vocabulary)
    ticket = engine.submit([job([4, 9]), job([5])])
    with pytest.raises(EngineError, match="broke down; start it again"):
        await asyncio.wait_for(said(ticket), 20)
    with pytest.raises(EngineError, match="broke down"):
        engine.submit([job([1])])
    assert not engine.alive


def test_short_prompts_pass_a_long_one_that_waits_for_another(vocabulary: Vocabulary) -> None:
    scheduler = Scheduler(
        served.model(), served.cache(num_slots=3), vocabulary, Policy(part_tokens=8), clock=lambda: 0.0
    )
    works = [Work.of(job(tokens(length).tolist(), 1), 0) for length in (60, 60, 5)]
    for work in works:
        scheduler.add(work)
    scheduler.step()
    assert [work.done for work in works] == [False, False, True]
    assert list(scheduler.waiting) == [works[1]]
    while scheduler.busy:
        scheduler.step()
    assert all(work.done for work in works)
