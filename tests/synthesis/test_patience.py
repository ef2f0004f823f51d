"""Time-outs of requests: silence and length are bounded, and a cancellation from elsewhere stays one."""

import asyncio

import pytest

from megatron_mathcpt.synthesis.patience import Patience


async def listen(patience: Patience, gaps: list[float]) -> float:
    """Hear something after each gap; how long it took."""
    clock = asyncio.get_running_loop().time
    with patience.watch() as watch:
        for gap in gaps:
            await asyncio.sleep(gap)
            watch.heard = clock()
    return clock() - watch.began


def test_silence_ends_a_request_and_words_keep_it() -> None:
    async def run() -> None:
        patience = Patience(read_seconds=0.5, total_seconds=60)
        assert await listen(patience, [0.2] * 5) >= 0.99  # longer than the silence allowed, in all
        with pytest.raises(TimeoutError):
            await listen(patience, [0.01, 50])
        assert not patience.watches
        await asyncio.sleep(0.01)  # the cancellation was taken back: the task goes on

    asyncio.run(asyncio.wait_for(run(), 30))


def test_length_ends_a_request_however_much_is_heard() -> None:
    async def run() -> float:
        clock = asyncio.get_running_loop().time
        began = clock()
        with pytest.raises(TimeoutError):
            await listen(Patience(read_seconds=60, total_seconds=0.3), [0.02] * 1000)
        return clock() - began

    assert 0.3 <= asyncio.run(run()) < 10


def test_many_are_watched_and_only_the_silent_end() -> None:
    async def run() -> list[object]:
        patience = Patience(read_seconds=1, total_seconds=60)
        gaps = [[0.1] * 3 if number % 2 else [50.0] for number in range(20)]
        return list(await asyncio.gather(*(listen(patience, g) for g in gaps), return_exceptions=True))

    ends = asyncio.run(run())
    assert [isinstance(end, TimeoutError) for end in ends] == [True, False] * 10


def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def run() -> None:
        task = asyncio.create_task(listen(Patience(60, 60), [50]))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
