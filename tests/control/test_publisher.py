"""The publisher: first one worker, then the rest; who rejects or dies stops it, who is silent does not.

The workers here only record what they are sent; real ones are in tests/system.
"""

from __future__ import annotations

import asyncio
import signal
import time
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stage import ACK, DIE, NOTHING, REJECT, Recorder, Stage, files, is_open, play, snapshot

from avapd.control import publisher as module
from avapd.control.canary import RollOutError
from avapd.control.worker import Worker
from avapd.errors import SnapshotError
from avapd.shared.channel import Ack

ACK_2 = Ack(generation=2, seconds=0.3)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed after a fraction of the time."""
    monkeypatch.setattr(module, "_ACK_SECONDS", 0.1)
    monkeypatch.setattr(module, "_BOOT_SECONDS", 0.3)
    monkeypatch.setattr(module, "_SILENT_SECONDS", 0.1)
    monkeypatch.setattr(module, "_ROLL_OUT_SECONDS", 0.2)


# --- the order ------------------------------------------------------------------------------------------------


def test_one_worker_goes_first_and_the_rest_after_its_ack() -> None:
    """While the first has not answered, nobody else is sent anything and the old snapshot stays current."""

    async def test(stage: Stage) -> None:
        workers = [stage.worker() for _ in range(3)]
        old = await stage.publish(1)
        stage.history.clear()
        workers[0].answer = NOTHING
        publishing = asyncio.create_task(stage.publish(2))
        for _ in range(5):
            await asyncio.sleep(0)
        assert stage.history == [(0, 2)]
        assert stage.publisher.current is old
        assert stage.publisher.generation == 1
        workers[0].answer = ACK
        workers[0].act(2)
        await publishing
        assert stage.history == [(0, 2), (1, 2), (2, 2)]
        assert stage.publisher.generation == 2
        assert [worker.generation for worker in workers] == [2, 2, 2]

    play(test)


def test_a_serving_worker_goes_first() -> None:
    """Its verdict is that of a running process; one that boots is asked only if no other is there."""

    async def test(stage: Stage) -> None:
        stage.worker(serving=False)
        stage.worker(serving=True)
        await stage.publish(1)
        assert stage.history == [(1, 1), (0, 1)]

    play(test)


def test_a_worker_without_a_heartbeat_goes_last_and_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped or starved: others give the verdict, and the publication is done when they have the snapshot."""
    monkeypatch.setattr(module, "_ROLL_OUT_SECONDS", 15.0)

    async def test(stage: Stage) -> None:
        frozen, live = stage.worker(NOTHING), stage.worker()
        frozen.quiet = 60.0
        began = time.monotonic()
        await stage.publish(1)
        assert time.monotonic() - began < 5
        assert stage.history == [(1, 1), (0, 1)]
        assert live.generation == 1
        assert stage.lines.said("Worker Silent") == []
        assert [line["workers"] for line in stage.lines.said("Workers Late")] == [[0]]

    play(test)


def test_without_workers_a_snapshot_waits_for_them() -> None:
    """At the start the catalog may be there before anybody; who joins gets it at once."""

    async def test(stage: Stage) -> None:
        await stage.publish(1)
        assert stage.publisher.generation == 1
        worker = stage.worker()
        assert worker.loads == [1]
        await stage.publish(2)
        assert stage.worker().loads == [2]

    play(test)


def test_who_joins_before_the_first_catalog_gets_nothing_yet() -> None:
    """And the first one when it is there."""

    async def test(stage: Stage) -> None:
        worker = stage.worker()
        assert worker.loads == []
        await stage.publish(1)
        assert worker.loads == [1]

    play(test)


# --- stops ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "reason"), [(REJECT, "worker 0: bad"), (DIE, "worker 0: the worker died on it")])
def test_a_rejection_or_a_death_stops_the_roll_out(answer: str, reason: str) -> None:
    """Nobody else is sent it, the old snapshot stays open and current, the new one is closed."""

    async def test(stage: Stage) -> None:
        workers = [stage.worker() for _ in range(3)]
        old = await stage.publish(1)
        stage.history.clear()
        workers[0].answer = answer
        with pytest.raises(SnapshotError, match=reason):
            await stage.publish(2)
        assert stage.history == [(0, 2)]
        assert stage.publisher.current is old
        assert is_open(old)
        assert not is_open(stage._made[-1])
        assert [worker.generation for worker in workers] == [1, 1, 1]

    play(test)


def test_after_a_rejection_the_next_one_is_tried_on_the_same_worker() -> None:
    """A refusal is no mark against the worker; generations go on rising."""

    async def test(stage: Stage) -> None:
        workers = [stage.worker(), stage.worker()]
        workers[0].answer = REJECT
        for generation in (1, 2):
            with pytest.raises(SnapshotError):
                await stage.publish(generation)
        assert stage.publisher.current is None
        workers[0].answer = ACK
        await stage.publish(3)
        assert workers[0].loads == [1, 2, 3]
        assert workers[1].loads == [3]

    play(test)


def test_who_joins_after_a_death_gets_what_was_served_before() -> None:
    """The successor of the worker that died on a snapshot never sees it."""

    async def test(stage: Stage) -> None:
        worker = stage.worker()
        await stage.publish(1)
        worker.answer = DIE
        with pytest.raises(SnapshotError):
            await stage.publish(2)
        assert stage.worker().loads == [1]

    play(test)


# --- silence --------------------------------------------------------------------------------------------------


def test_a_silent_worker_is_passed_over() -> None:
    """The next one gives the verdict; the silent one gets the newest when it answers at last."""

    async def test(stage: Stage) -> None:
        silent, other = stage.worker(NOTHING), stage.worker()
        await stage.publish(1)
        assert (other.generation, silent.generation) == (1, 0)
        assert [line["worker"] for line in stage.lines.said("Worker Silent")] == [0]
        assert [line["workers"] for line in stage.lines.said("Workers Late")] == [[0]]
        await stage.publish(2)
        await stage.publish(3)
        assert silent.loads == [1]
        silent.answer = ACK
        silent.act(1)
        assert silent.loads == [1, 3]

    play(test)


def test_a_worker_that_lives_and_does_not_ack_hangs_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its heart beats, so no watchdog will see it: it is ended, and the snapshot is to blame."""
    monkeypatch.setattr(module, "_HUNG_SECONDS", 0.1)

    async def test(stage: Stage) -> None:
        first, other = stage.worker(), stage.worker()
        old = await stage.publish(1)
        first.answer = NOTHING
        with pytest.raises(RollOutError, match="worker 0: the worker hangs while it loads it") as caught:
            await stage.publish(2)
        assert caught.value.content
        assert first.signals == [signal.SIGKILL]
        assert other.loads == [1]
        assert stage.publisher.current is old

    play(test)


def test_a_slow_worker_has_time_to_ack(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine an ack may come late."""
    monkeypatch.setattr(module, "_HUNG_SECONDS", 30.0)

    async def test(stage: Stage) -> None:
        first, other = stage.worker(), stage.worker()
        await stage.publish(1)
        first.answer = NOTHING
        asyncio.get_running_loop().call_later(0.3, stage.publisher.acked, cast("Worker", first), ACK_2)
        publishing = asyncio.create_task(stage.publish(2))
        await publishing
        assert (first.generation, other.generation) == (2, 2)

    play(test)


# --- one worker alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "reason"), [(REJECT, "bad"), (DIE, "died on it"), (NOTHING, "hangs")])
def test_with_one_worker_a_spare_one_takes_a_change_first(
    monkeypatch: pytest.MonkeyPatch, answer: str, reason: str
) -> None:
    """What it does not come through, the one that serves never has; the spare one is ended either way."""
    monkeypatch.setattr(module, "_HUNG_SECONDS", 0.1)

    async def test(stage: Stage) -> None:
        only = stage.worker()
        await stage.publish(1)
        spare = Recorder(0, stage, answer)
        stage.publisher.spare = lambda: cast("Worker", spare)
        with pytest.raises(RollOutError, match=reason):
            await stage.publisher.publish(snapshot({"a": "bad"}, 2), soak=True)
        assert (spare.loads, only.loads) == ([2], [1])
        assert signal.SIGKILL in spare.signals
        spare.answer, spare.sent, spare.generation = ACK, 0, 0
        await stage.publisher.publish(snapshot({"a": "good"}, 3), soak=True)
        assert stage.history[-2:] == [(0, 3), (0, 3)]
        assert only.loads == [1, 3]

    play(test)


def test_without_room_for_a_spare_worker_it_is_done_without() -> None:
    """As on a host that has no memory for another process."""

    async def test(stage: Stage) -> None:
        only = stage.worker()
        await stage.publish(1)
        await stage.publisher.publish(snapshot({"a": "good"}, 2), soak=True)
        assert only.loads == [1, 2]

    play(test)


def test_with_silent_workers_only_the_snapshot_is_still_published() -> None:
    """Nobody says no; the watchdog replaces the silent, and their successors get it."""

    async def test(stage: Stage) -> None:
        silent = [stage.worker(NOTHING) for _ in range(2)]
        await stage.publish(1)
        assert stage.publisher.generation == 1
        assert [worker.loads for worker in silent] == [[1], [1]]
        assert stage.worker().loads == [1]

    play(test)


def test_a_booting_worker_has_until_the_end_of_its_boot() -> None:
    """It cannot answer before it runs."""

    async def test(stage: Stage) -> None:
        booting = stage.worker(NOTHING, serving=False, booted=False)

        def finish_boot() -> None:
            booting.answer = ACK
            booting.act(1)

        asyncio.get_running_loop().call_later(0.25, finish_boot)
        await stage.publish(1)
        assert stage.lines.said("Worker Silent") == []
        assert booting.generation == 1

    play(test)


def test_a_worker_that_left_meanwhile_is_not_waited_for() -> None:
    """It was there when the roll-out began; nothing is sent to it any more, and nobody waits for its answer."""

    async def test(stage: Stage) -> None:
        silent, leaver, last = stage.worker(NOTHING), stage.worker(NOTHING), stage.worker()
        publishing = asyncio.create_task(stage.publish(1))
        await asyncio.sleep(0)
        stage.publisher.leave(cast("Worker", leaver))
        await publishing
        assert leaver.loads == []
        assert (silent.loads, last.loads) == ([1], [1])
        assert [line["worker"] for line in stage.lines.said("Worker Silent")] == [0]

    play(test)


def test_a_late_worker_does_not_hold_up_the_others() -> None:
    """After the roll-out's time the publication is done, and the laggard is named."""

    async def test(stage: Stage) -> None:
        stage.worker()
        late = stage.worker(NOTHING)
        await stage.publish(1)
        assert [line["workers"] for line in stage.lines.said("Workers Late")] == [[1]]
        late.answer = ACK
        late.act(1)
        await stage.publish(2)
        assert late.loads == [1, 2]

    play(test)


# --- newest wins ----------------------------------------------------------------------------------------------


def test_a_worker_has_at_most_one_unacknowledged_load_and_then_the_newest() -> None:
    """What came meanwhile is skipped; generations only rise, for everybody."""

    async def test(stage: Stage) -> None:
        quick, slow = stage.worker(), stage.worker(NOTHING)
        for generation in range(1, 6):
            await stage.publish(generation)
        assert quick.loads == [1, 2, 3, 4, 5]
        assert slow.loads == [1]
        slow.act(1)
        assert slow.loads == [1]
        slow.answer = ACK
        slow.act(1)
        assert slow.loads == [1, 5]
        await asyncio.sleep(0)
        assert slow.generation == 5

    play(test)


@given(st.lists(st.tuples(st.sampled_from([ACK, ACK, ACK, REJECT, DIE]), st.integers(0, 2)), max_size=8))
@settings(deadline=None)
def test_generations_never_go_backwards(script: list[tuple[str, int]]) -> None:
    """Whatever workers do with a generation: each is sent rising numbers, and a rejected one reaches nobody else."""

    async def test(stage: Stage) -> None:
        workers = [stage.worker() for _ in range(3)]
        rejected = set()
        for generation, (answer, who) in enumerate(script, 1):
            first = next((worker for worker in workers if worker.slot in stage.slots()), None)
            if first is not None:
                first.answer = answer
            try:
                await stage.publish(generation)
            except SnapshotError:
                rejected.add(generation)
            for worker in workers:
                worker.answer = ACK
            if len(stage.slots()) <= who:
                workers.append(stage.worker())
                await asyncio.sleep(0)  # it answers before the script gives it another answer
        await asyncio.sleep(0)
        for worker in workers:
            assert worker.loads == sorted(set(worker.loads))
        for generation in rejected:
            assert sum(generation in worker.loads for worker in workers) == 1
        current = stage.publisher.generation
        assert current == max(set(range(len(script) + 1)) - rejected)
        assert all(worker.generation == current for worker in workers if worker.slot in stage.slots() and current)

    play(test)


# --- what is closed -------------------------------------------------------------------------------------------


def test_the_old_snapshot_is_closed_once_the_new_one_is_served() -> None:
    """At most one is open between two publications, however many there were."""

    async def test(stage: Stage) -> None:
        stage.worker()
        before = files()
        for generation in range(1, 30):
            await stage.publish(generation)
            assert [is_open(made) for made in stage._made] == [False] * (generation - 1) + [True]
        assert files() == before + 2  # its own and its mapping's

    play(test)
