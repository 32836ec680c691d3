"""The loop and its saves in the background: at the end, at a stop, on a full disk, and when a process is killed."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from fss.tracking.run_dir import RunDir
from fss.train import tensor_file
from fss.train.loop import Trainer
from tests.support.ranks import on_ranks
from tests.support.saves import full, step_of, writing
from tests.support.toy_training import ADAMW, train


def _slowly(folder: str, stop_at: int | None) -> tuple[int, list[str]]:
    """Steps that the training has done, and the checkpoints on the disk when the loop returns."""
    found: list[str] = []
    run = Trainer.run

    def listing(trainer: Trainer, *args) -> int:
        done = run(trainer, *args)
        found.extend(path.name for path in RunDir(Path(folder)).checkpoints.glob("step_*"))
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run", listing)
        writing(patch, lambda path, progressed: time.sleep(0.5))
        return train(folder, 4, stop_at=stop_at)[0], found


@pytest.mark.parametrize(("stop_at", "done"), [(None, 4), (1, 2)])
def test_a_training_ends_or_stops_when_its_last_save_is_whole(tmp_path, stop_at, done):
    assert on_ranks(2, _slowly, str(tmp_path), stop_at) == [(done, [f"step_{done:08d}"])] * 2


def _failing_at_the_end(folder: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        writing(patch, lambda path, progressed: step_of(path) == 4 and full(path, progressed))
        return train(folder, 4, save_every=1)[0]


def test_a_last_save_that_fails_ends_the_training_on_all_ranks(tmp_path):
    for message in on_ranks(2, _failing_at_the_end, str(tmp_path)):
        assert message.startswith("cannot save step 4 in") and message.endswith("; checkpoint 3 is whole")


def _finishing(folder: str, optim: dict):
    return train(folder, 6, optim=optim)


def _killed(folder: str, optim: dict) -> None:
    """Rank 0 kills itself in the middle of the file of step 4; the other ranks end as they can."""

    def die(path: Path) -> None:
        if step_of(path) == 4 and path.stat().st_size > 1000:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Exception):
        patch.setattr(tensor_file, "PIECE", 100)
        writing(patch, piece=die)
        train(folder, 6, save_every=1, optim=optim)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_process_that_is_killed_in_the_middle_of_a_write_loses_nothing_before_it(tmp_path, world_size):
    whole = on_ranks(world_size, _finishing, str(tmp_path / "whole"), ADAMW)
    on_ranks(world_size, _killed, str(tmp_path / "cut"), ADAMW, killed=(0,))
    [half] = (tmp_path / "cut" / "checkpoints").glob(".step_00000004.*.tmp/state.safetensors")
    complete = tmp_path / "cut" / "checkpoints" / "step_00000003" / "state.safetensors"
    assert 1000 < half.stat().st_size < complete.stat().st_size
    rest = on_ranks(world_size, _finishing, str(tmp_path / "cut"), ADAMW)
    for (_, expected, rows), (_, state, cut_rows) in zip(whole, rest, strict=True):
        assert rows == cut_rows
        assert expected.keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())
    assert not half.parent.exists()
