"""Checkpoints: everything that decides the next step, in a directory that is either whole or not there.

    checkpoints/
        step_00001000/
            state.safetensors    trained/..., replica/..., optimizer/<state>/<parameter>, rng/<rank>/<generator>
            state.json           step, method, world size, and the hash of state.safetensors
        .step_00002000.*.tmp/    a save that was cut short; removed at the next start

The directory is written by `shards.format.atomic_write`, by a thread of rank 0 while the training goes on. Nothing is
pickled. The position in the data is the step itself: see shards.read.EpochOrder.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fss.compat import CHECKPOINT, current_fields
from fss.distributed.context import DistributedContext
from fss.distributed.zero import SteppedOptimizer
from fss.errors import RunError, WeightsError, at_least
from fss.methods.base import Method
from fss.train import tensor_file
from fss.train.background import BackgroundTask, HostCopies
from shards.format import atomic_write

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and how many checkpoints to keep."""

    every: int = 1000
    """Optimizer steps between checkpoints; the last step is always saved."""
    keep_last: int = 3
    """Newest checkpoints that stay on disk."""

    def __post_init__(self) -> None:
        at_least("checkpoint", self, every=1, keep_last=1)


@dataclass(kw_only=True)
class State:
    """The content of a checkpoint, by reference: saving reads it, loading writes it in place."""

    name: str
    """The method's name."""
    method: Method
    optimizer: SteppedOptimizer

    def method_tensors(self) -> dict[str, Tensor]:
        """The tensors of the method by name; every rank has all of them, with equal values."""
        out = {f"trained/{name}": tensor for name, tensor in self.method.trainable.state_dict().items()}
        return out | {f"replica/{name}": tensor for name, tensor in self.method.non_trainable.state_dict().items()}

    def changing_tensors(self) -> dict[str, Tensor]:
        """The same without frozen networks."""
        frozen = {f"replica/{part}" for part in self.method.frozen}
        return {name: t for name, t in self.method_tensors().items() if name.split(".")[0] not in frozen}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state except those of a single rank, by name. Collective: under ZeRO ranks have slices.

        The state of an optimizer has the parameter's shape; a step counter is a scalar.
        """
        out = self.method_tensors()
        for parameter, name in self._parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    out[f"optimizer/{key}/{name}"] = value
        return out

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load `tensors`. Raises WeightsError if names or shapes do not fit."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        try:
            self.method.trainable.load_state_dict(part("trained/"))
            self.method.non_trainable.load_state_dict(part("replica/"))
        except RuntimeError as error:
            raise WeightsError(f"the checkpoint does not fit method {self.name}: {error}") from None
        for parameter, name in self._parameters():
            state = {
                key.split("/")[1]: tensor.to(parameter.device)
                for key, tensor in tensors.items()
                if key.startswith("optimizer/") and key.split("/", 2)[2] == name
            }
            # In the parameter's own memory format, as the optimizer made it: the fused step needs both alike.
            self.optimizer.state[parameter] = {k: _like(v, parameter) for k, v in state.items()}

    def _parameters(self) -> list[tuple[torch.nn.Parameter, str]]:
        return [(p, name) for name, p in self.method.trainable.named_parameters() if p.requires_grad]


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value.clone()


class Checkpoints:
    """The checkpoints of one run. They are written in the background, one at a time, by rank 0."""

    def __init__(self, folder: Path, config: CheckpointConfig, context: DistributedContext) -> None:
        self._folder = folder
        self._config = config
        self._context = context
        self._copies = HostCopies()
        self._writing = BackgroundTask()
        self._step = 0  # of the newest save

    def save(self, state: State, step: int) -> None:
        """Copy the state, and start to write checkpoint `step`. Collective.

        Waits for the save before this one. Raises its RunError if the disk did not take it: see `finish`.
        """
        generators = self._context.gather_objects(rng_state(self._context.device))
        tensors = state.tensors()
        self._context.on_main(lambda: self._start(state.name, tensors, step, generators))

    def finish(self) -> None:
        """Wait until the newest save is whole on the disk, and older ones beyond `keep_last` are deleted. Collective.

        Raises RunError, on all ranks, if the disk does not take it; everything else on the disk is left as it was.
        """
        self._context.on_main(self._wait)

    @contextmanager
    def finishing(self, say: Callable[[str], object]) -> Iterator[None]:
        """Finish what was saved inside, where the block ends. Collective.

        After an error the other ranks may not come here, so only the rank that writes waits; it says what failed.
        """
        try:
            yield
        except BaseException:
            try:
                self._wait()
            except RunError as error:
                say(str(error))
            raise
        self.finish()

    def _start(self, method: str, tensors: dict[str, Tensor], step: int, generators: list[dict[str, Tensor]]) -> None:
        self._wait()
        arrived = self._copies.start(tensors)
        rngs = {f"rng/{rank}/{name}": t for rank, states in enumerate(generators) for name, t in states.items()}
        self._step = step
        self._writing.start(lambda: self._write(method, arrived() | rngs, step))

    def _wait(self) -> None:
        self._writing.wait(lambda: self._context.report_progress(f"saving step {self._step}"))

    def _write(self, method: str, tensors: dict[str, Tensor], step: int) -> None:
        """Write checkpoint `step`, and delete older ones beyond `keep_last`. Raises RunError if the disk is full."""
        try:
            with atomic_write(self._checkpoint(step)) as temporary:
                temporary.mkdir(parents=True)
                header = {
                    "format": FORMAT,
                    "method": method,
                    "step": step,
                    "world_size": self._context.world_size,
                    "sha256": tensor_file.write(temporary / "state.safetensors", tensors, self._writing.progressed),
                }
                (temporary / "state.json").write_text(json.dumps(header))
        except OSError as error:
            whole = self.steps()
            raise RunError(
                f"cannot save step {step} in {self._folder} ({error}): free some space and run the same command again"
                + (f"; checkpoint {whole[-1]} is whole" if whole else "; no checkpoint of this run exists yet")
            ) from None
        # A later one is damaged, since the run resumed before it: it must not count as one that is kept.
        for old in [other for other in self.steps() if other <= step][: -self._config.keep_last]:
            shutil.rmtree(self._checkpoint(old), ignore_errors=True)

    def _checkpoint(self, step: int) -> Path:
        return self._folder / f"step_{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first."""
        if not self._folder.is_dir():
            return []
        return sorted(int(p.name.removeprefix("step_")) for p in self._folder.glob("step_*") if p.is_dir())

    def resume(self, state: State) -> tuple[int, list[str]]:
        """Load the newest whole checkpoint, which rank 0 reads and the others get from it. Collective.

        Returns its step, 0 if there is none, and messages about anything unusual. A damaged checkpoint is skipped with
        a message, and stays on disk. Raises WeightsError if all are damaged or the newest does not fit.
        """
        data = torch.empty(0, dtype=torch.uint8)

        def newest() -> tuple[int, dict[str, Any], int, list[str]]:
            nonlocal data
            step, header, data, messages = self._newest()
            return step, header, len(data), messages

        step, header, size, messages = self._context.on_main(newest)
        if not step:
            return 0, messages
        if header["method"] != state.name:
            raise WeightsError(f"checkpoint {step} is of method {header['method']}, this run trains {state.name}")
        if not self._context.is_main:
            data = torch.empty(size, dtype=torch.uint8)
        self._context.broadcast_bytes(data)
        tensors = tensor_file.parse(data)
        state.load(tensors)
        if header["world_size"] == self._context.world_size:
            prefix = f"rng/{self._context.rank}/"
            generators = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            set_rng_state(generators, self._context.device)
        else:
            messages.append(
                f"checkpoint {step} was written by {header['world_size']} ranks, now there are "
                f"{self._context.world_size}: data order and weights continue unchanged, batch statistics and random "
                "generators do not"
            )
        return step, messages

    def _newest(self) -> tuple[int, dict[str, Any], Tensor, list[str]]:
        """Step, header and data, uint8 [n], of the newest whole checkpoint, 0 without one; messages.

        Raises WeightsError if all are damaged.
        """
        messages = []
        for leftover in self._folder.glob(".step_*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
            messages.append(f"removed {leftover.name}: a save that was cut short")
        for step in reversed(self.steps()):
            try:
                report = partial(self._context.report_progress, f"reading checkpoint {step}")
                header, data = read(self._checkpoint(step), report)
                return step, header, data, messages
            except WeightsError as error:
                messages.append(f"{error}; trying the one before it")
        if messages and self.steps():
            raise WeightsError(f"no checkpoint in {self._folder} is whole ({messages[-1]}): delete them to start again")
        return 0, {}, torch.empty(0, dtype=torch.uint8), messages


def read(folder: Path, progressed: Callable[[], object] = lambda: None) -> tuple[dict[str, Any], Tensor]:
    """Header of the checkpoint in `folder`, and the data of its tensors, uint8 [n].

    Raises WeightsError unless it is whole and of this format. progressed: called while it is read.
    """
    try:
        header = current_fields(json.loads((folder / "state.json").read_text()), CHECKPOINT)
        data, digest = tensor_file.read(folder / "state.safetensors", progressed)
    except (OSError, ValueError) as error:
        raise WeightsError(f"checkpoint {folder} is damaged ({error})") from None
    if header.get("format") != FORMAT:
        raise WeightsError(f"checkpoint {folder} has format {header.get('format')}, this program reads {FORMAT}")
    if digest != header["sha256"]:
        raise WeightsError(f"checkpoint {folder} is damaged (its hash is not the one recorded)")
    return header, data


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of this process's generators from which methods on `device` may draw."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore the generators of this process."""
    torch.set_rng_state(state["cpu"].clone())  # which torch reads as a structure, at an aligned address
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].clone(), device)
