"""The micro-batcher: batches under load, isolation, cancellation, refusal, and no wait without end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from feedworks.serving.batching import MicroBatcher, OverloadedError


class Doubler:
    """Doubles numbers; a negative one fails the whole batch. Waits at the gate before each batch."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        assert self.gate.wait(10)
        self.batches.append(list(numbers))
        if min(numbers) < 0:
            raise ValueError(f"negative number {min(numbers)}")
        return [2 * number for number in numbers]


async def submit_behind_a_busy_model(
    model: Doubler, batcher: MicroBatcher[int, int], numbers: Sequence[int]
) -> list[asyncio.Task[int]]:
    """Submit 0, which occupies the model until the gate opens, then the numbers."""
    model.gate.clear()
    tasks = [asyncio.create_task(batcher.submit(0))]
    await asyncio.sleep(0.05)
    tasks += [asyncio.create_task(batcher.submit(number)) for number in numbers]
    await asyncio.sleep(0.01)
    return tasks


def test_what_waits_is_answered_in_one_batch() -> None:
    model, sizes = Doubler(), []

    async def run() -> list[int]:
        batcher = MicroBatcher(model, max_batch=4, observe=sizes.append)
        tasks = await submit_behind_a_busy_model(model, batcher, range(1, 7))
        model.gate.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(run()) == [0, 2, 4, 6, 8, 10, 12]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert sizes == [1, 4, 2]


def test_an_error_stays_with_its_request() -> None:
    model = Doubler()

    async def run() -> list[int | BaseException]:
        batcher = MicroBatcher(model)
        tasks = await submit_behind_a_busy_model(model, batcher, [1, -5, 3])
        model.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    zero, one, error, three = asyncio.run(run())
    assert (zero, one, three) == (0, 2, 6)
    assert isinstance(error, ValueError)
    assert "-5" in str(error)


def test_a_request_whose_client_is_gone_is_left_out() -> None:
    model = Doubler()

    async def run() -> list[int | BaseException]:
        batcher = MicroBatcher(model)
        tasks = await submit_behind_a_busy_model(model, batcher, [1, 2, 3])
        tasks[2].cancel()
        model.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(run())
    assert isinstance(found.pop(2), asyncio.CancelledError)
    assert found == [0, 2, 6]
    assert model.batches == [[0], [1, 3]]


def test_a_client_that_goes_while_the_model_computes_harms_nobody() -> None:
    model = Doubler()

    async def run() -> int:
        batcher = MicroBatcher(model)
        (busy,) = await submit_behind_a_busy_model(model, batcher, [])
        busy.cancel()
        model.gate.set()
        return await batcher.submit(4)

    assert asyncio.run(run()) == 8


def test_a_full_queue_refuses() -> None:
    model = Doubler()

    async def run() -> list[int | BaseException]:
        batcher = MicroBatcher(model, max_waiting=2)
        tasks = await submit_behind_a_busy_model(model, batcher, [1, 2, 3])
        model.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    *answered, refused = asyncio.run(run())
    assert answered == [0, 2, 4]
    assert isinstance(refused, OverloadedError)


def test_a_closed_batcher_answers_with_an_error() -> None:
    async def run() -> None:
        batcher = MicroBatcher(Doubler())
        batcher.close()
        await asyncio.wait_for(batcher.submit(1), 5)

    with pytest.raises(RuntimeError, match="shutdown"):
        asyncio.run(run())


def test_a_model_that_loses_an_answer_is_an_error_for_the_request_alone() -> None:
    async def run() -> None:
        batcher: MicroBatcher[int, int] = MicroBatcher(lambda numbers: [])
        await asyncio.wait_for(batcher.submit(1), 5)

    with pytest.raises(RuntimeError, match="1 requests got 0 answers"):
        asyncio.run(run())


def test_on_the_event_loop_what_comes_together_is_one_batch_and_others_get_their_turn() -> None:
    model, turns = Doubler(), []

    async def neighbour() -> None:
        for _ in range(20):
            turns.append(len(model.batches))
            await asyncio.sleep(0)

    async def run() -> list[int]:
        batcher = MicroBatcher(model, max_batch=4, in_thread=False)
        other = asyncio.create_task(neighbour())
        found = await asyncio.gather(*(batcher.submit(number) for number in range(10)))
        await other
        batcher.close()
        return found

    assert asyncio.run(run()) == list(range(0, 20, 2))
    assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert {1, 2} <= set(turns)


@pytest.mark.parametrize("in_thread", [True, False])
def test_random_load(in_thread: bool) -> None:
    """Many clients, some of them bad or cancelled: everybody gets the own answer."""
    model = Doubler()

    async def run() -> None:
        batcher = MicroBatcher(model, max_batch=8, in_thread=in_thread)

        async def client(number: int) -> None:
            for step in range(20):
                value = 1000 * number + step
                if step % 7 == 3:
                    with pytest.raises(ValueError, match=str(-value - 1)):
                        await batcher.submit(-value - 1)
                elif step % 7 == 5:
                    asyncio.get_running_loop().call_soon(asyncio.create_task(batcher.submit(value)).cancel)
                else:
                    assert await batcher.submit(value) == 2 * value

        await asyncio.wait_for(asyncio.gather(*(client(number) for number in range(30))), 60)

    asyncio.run(run())
    assert max(map(len, model.batches)) > 1
