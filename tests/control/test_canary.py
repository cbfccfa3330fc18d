"""The canary: what stops a roll-out while one worker serves it alone, and who is blamed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from support.stage import Recorder, Stage, play, snapshot

from avapd.control.canary import RollOutError
from avapd.control.worker import Worker

SOAK = 0.3


async def soaking(stage: Stage, generation: int) -> asyncio.Task[None]:
    """A roll-out that is at its canary."""
    task = asyncio.create_task(stage.publisher.publish(snapshot({"a": f"code {generation}"}, generation), soak=True))
    while stage.publisher.canary is None:  # noqa: ASYNC110  # a few turns of the loop away
        await asyncio.sleep(0)
    return task


def play_soaking(test: Callable[[Stage], Awaitable[None]]) -> None:
    """A publisher with a soak, three workers, and a generation that is served."""

    async def prepared(stage: Stage) -> None:
        for _ in range(3):
            stage.worker()
        await stage.publish(1)
        await test(stage)

    play(prepared, SOAK)


def recorders(stage: Stage) -> list[Recorder]:
    return [cast("Recorder", worker) for worker in stage.publisher._workers]


@pytest.mark.parametrize(("felled", "content"), [(False, True), (True, False)])
def test_a_death_blames_the_snapshot_unless_somebody_else_did_it(felled: bool, content: bool) -> None:
    """Nobody but the canary was sent it, and the old generation stays current."""

    async def test(stage: Stage) -> None:
        first, *others = recorders(stage)
        task = await soaking(stage, 2)
        first.felled = felled
        stage.publisher.leave(cast("Worker", first))
        with pytest.raises(RollOutError, match="died serving it") as caught:
            await task
        assert caught.value.content == content
        assert [one.loads for one in others] == [[1], [1]]
        assert stage.publisher.generation == 1
        assert stage.publisher.canary is None

    play_soaking(test)


@pytest.mark.parametrize(
    ("canary", "peers", "stops"),
    [((1000, 500), (1000, 0), True), ((1000, 500), (1000, 400), False), ((1000, 9), (1000, 0), False),
     ((100_000, 500), (1000, 0), False), ((20, 20), (0, 0), True)],
)  # fmt: skip
def test_failed_calls_count_against_the_canary_when_its_peers_have_fewer(
    canary: tuple[int, int], peers: tuple[int, int], stops: bool
) -> None:
    """Ten at least, one in a hundred at least, and a share of more than twice the peers'."""

    async def test(stage: Stage) -> None:
        first, *others = recorders(stage)
        task = await soaking(stage, 2)
        first.calls = canary
        for one in others:
            one.calls = (peers[0] // 2, peers[1] // 2)
        if stops:
            with pytest.raises(RollOutError, match=f"{canary[1]} of {canary[0]} calls failed") as caught:
                await task
            assert caught.value.content
        else:
            await task
            assert all(one.loads == [1, 2] for one in (first, *others))
        assert stage.publisher.generation == (1 if stops else 2)

    play_soaking(test)


def test_a_hung_canary_stops_the_roll_out_and_a_starved_one_does_not() -> None:
    """Silence that was spent waiting for a CPU does not count."""

    async def test(stage: Stage) -> None:
        first = recorders(stage)[0]
        task = await soaking(stage, 2)
        first.quiet, first.starved = 5.0, 4.5
        await task
        first.quiet, first.starved = 0.0, 0.0
        task = await soaking(stage, 3)
        first.quiet = 5.0
        with pytest.raises(RollOutError, match="hangs"):
            await task

    play_soaking(test)


def test_the_ack_of_another_worker_does_not_end_the_canary() -> None:
    """Who starts meanwhile gets what is served, and the roll-out goes on; an order stops it at once."""

    async def test(stage: Stage) -> None:
        first = recorders(stage)[0]
        task = await soaking(stage, 2)
        late = stage.worker()
        await task
        assert late.loads == [1, 2]
        task = await soaking(stage, 3)
        assert stage.publisher.withdraw()
        with pytest.raises(RollOutError, match="withdrawn by an order") as caught:
            await task
        assert not caught.value.content
        await stage.publish(4)  # what brings it back
        assert first.loads == [1, 2, 3, 4]
        assert late.loads == [1, 2, 4]
        assert not stage.publisher.withdraw()

    play_soaking(test)
