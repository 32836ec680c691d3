"""Saves in the background: what they contain, what waits for them, and what happens to their errors."""

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fss.distributed.context import DistributedContext
from fss.errors import RunError
from fss.train.background import BackgroundTask, HostCopies
from fss.train.checkpoint import CheckpointConfig, Checkpoints
from tests.support.contexts import joined
from tests.support.ended import Ended
from tests.support.ranks import on_ranks
from tests.support.saves import full, new_state, step_of, writing

PATIENCE = 60  # seconds
LIMIT = 2  # seconds without progress after which a watchdog ends a process


def test_a_save_has_the_values_of_its_moment_and_does_not_wait(tmp_path, context, monkeypatch):
    release = threading.Event()
    writing(monkeypatch, lambda path, progressed: release.wait(PATIENCE))
    state = new_state()
    expected = {name: tensor.clone() for name, tensor in state.tensors().items()}
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), context)
    checkpoints.save(state, 1)
    assert checkpoints.steps() == []
    with torch.no_grad():
        for tensor in state.tensors().values():
            tensor.add_(1)
    release.set()
    checkpoints.finish()
    found = load_file(tmp_path / "step_00000001" / "state.safetensors")
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


def test_one_save_at_a_time_and_old_ones_go_when_the_new_one_is_whole(tmp_path, context, monkeypatch):
    events = []

    def slowly(path: Path, progressed: Callable) -> None:
        events.append(("begins", step_of(path), checkpoints.steps()))
        time.sleep(0.1)  # would let the next one begin
        events.append(("ends", step_of(path), checkpoints.steps()))

    writing(monkeypatch, slowly)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=1), context)
    for step in (1, 2, 3):
        checkpoints.save(new_state(), step)
    checkpoints.finish()
    on_disk = {1: [], 2: [1], 3: [2]}
    assert events == [(event, step, on_disk[step]) for step in (1, 2, 3) for event in ("begins", "ends")]
    assert checkpoints.steps() == [3]


def _ahead(folder: str) -> bool:
    """Rank 0 writes when the others have left `save` and met in a collective of their next step."""
    ahead = Path(folder) / "ahead"

    def wait_for_the_others(path: Path, progressed: Callable) -> None:
        end = time.monotonic() + PATIENCE
        while not ahead.exists():
            assert time.monotonic() < end, "the others wait for the writing"
            time.sleep(0.01)

    with joined(3) as context, pytest.MonkeyPatch.context() as patch:
        writing(patch, wait_for_the_others)
        checkpoints = Checkpoints(Path(folder), CheckpointConfig(), context)
        checkpoints.save(new_state(), 1)
        context.any_rank(False)
        if context.rank == 2:
            ahead.touch()
        checkpoints.finish()
        return checkpoints.steps() == [1]


def test_no_rank_waits_for_the_writing(tmp_path):
    assert on_ranks(3, _ahead, str(tmp_path)) == [True] * 3


def _onto_a_full_disk(folder: str, meets: str) -> list[str]:
    messages = []
    with joined() as context, pytest.MonkeyPatch.context() as patch:
        checkpoints = Checkpoints(Path(folder), CheckpointConfig(), context)
        checkpoints.save(new_state(), 1)
        checkpoints.finish()
        writing(patch, lambda path, progressed: step_of(path) == 2 and full(path, progressed))
        checkpoints.save(new_state(), 2)
        for _ in range(2):
            try:
                if meets == "the next save":
                    checkpoints.save(new_state(), 3)
                    checkpoints.finish()
                else:
                    checkpoints.finish()
            except RunError as error:
                messages.append(str(error))
    return messages


@pytest.mark.parametrize("meets", ["the next save", "the end"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_error_of_the_thread_reaches_all_ranks_once(tmp_path, world_size, meets):
    for messages in on_ranks(world_size, _onto_a_full_disk, str(tmp_path), meets):
        assert messages == [
            f"cannot save step 2 in {tmp_path} ([Errno {errno.ENOSPC}] No space left on device): free some space and "
            "run the same command again; checkpoint 1 is whole"
        ]
    left = ["step_00000001", *(["step_00000003"] if meets == "the next save" else [])]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_an_error_of_the_thread_is_printed_beside_that_which_ended_the_run(tmp_path, context, monkeypatch):
    writing(monkeypatch, full)
    checkpoints, printed = Checkpoints(tmp_path, CheckpointConfig(), context), []
    with pytest.raises(KeyError, match="first"), checkpoints.finishing(printed.append):
        checkpoints.save(new_state(), 5)
        raise KeyError("first")
    [text] = printed
    assert text.startswith("cannot save step 5 in")
    checkpoints.finish()


def test_a_save_is_whole_after_an_error_of_the_training(tmp_path, context, monkeypatch):
    writing(monkeypatch, lambda path, progressed: time.sleep(0.1))
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), context)
    with pytest.raises(KeyError), checkpoints.finishing(print):
        checkpoints.save(new_state(), 5)
        raise KeyError
    assert checkpoints.steps() == [5]


def test_copies_take_the_same_memory_at_every_save_and_no_wait(counted):
    from tests.support.counted_device import DEVICE  # not in the ranks, which import this file

    values = {"a": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "b": torch.tensor(3)}
    with counted() as count:
        tensors = {name: value.to(DEVICE, non_blocking=True) for name, value in values.items()}
        copies = HostCopies()
        first = copies.start(tensors)()
        again = copies.start(tensors)()
        grown = copies.start({"a": tensors["a"][:1], "b": tensors["b"]})()
    assert not count.waits
    assert all(again[name].equal(value) and again[name].is_contiguous() for name, value in values.items())
    assert all(again[name] is first[name] for name in values)
    assert grown["b"] is first["b"] and grown["a"].equal(values["a"][:1])


def test_only_who_waits_for_a_task_reports_its_progress():
    release, done, reports = threading.Event(), threading.Event(), []
    task = BackgroundTask()

    def work() -> None:
        for _ in range(3):
            task.progressed()
        done.set()
        release.wait(PATIENCE)
        end = time.monotonic() + 10
        while not reports and time.monotonic() < end:
            task.progressed()
            time.sleep(0.01)

    task.start(work)
    assert done.wait(PATIENCE)
    assert reports == [], "a thread that hangs would look as if it made progress"
    release.set()
    task.wait(lambda: reports.append(threading.current_thread()))
    assert set(reports) == {threading.current_thread()}


def monitored() -> DistributedContext:
    return DistributedContext(
        world_size=None, device="cpu", precision="float32", accumulate=1, timeout_minutes=LIMIT / 60
    )


def _saving_long(folder: str) -> list[int]:
    def slowly(path: Path, progressed: Callable) -> None:
        for _ in range(15):
            time.sleep(LIMIT / 5)
            progressed()

    with monitored() as context, pytest.MonkeyPatch.context() as patch:
        writing(patch, slowly)
        checkpoints = Checkpoints(Path(folder), CheckpointConfig(), context)
        checkpoints.save(new_state(), 1)
        checkpoints.finish()
        return checkpoints.steps()


def test_a_long_write_is_waited_for_beyond_the_limit(tmp_path):
    assert on_ranks(2, _saving_long, str(tmp_path)) == [[1]] * 2


def _stuck(folder: str, what: str) -> str:
    over = threading.Event()

    def write_on(path: Path, progressed: Callable) -> None:
        while not over.wait(0.05):
            if what == "training":
                progressed()

    ended = Ended()
    context = monitored()
    with pytest.MonkeyPatch.context() as patch:
        writing(patch, write_on)
        checkpoints = Checkpoints(Path(folder), CheckpointConfig(), context)
        context.report_progress("in step 2")
        checkpoints.save(new_state(), 1)
        if what == "writing":
            threading.Thread(target=checkpoints.finish, daemon=True).start()
        message = ended.wait()
        over.set()
    return message


@pytest.mark.parametrize("what", ["writing", "training"])
def test_what_hangs_is_found(tmp_path, what):
    """The disk, although the rank that waits lives; the training, although the disk takes what it gets."""
    [message] = on_ranks(1, _stuck, str(tmp_path), what)
    assert f"has made no progress for {LIMIT} s: it is " in message
