"""Checkpoints: everything that decides the next step, in a directory that is either whole or not there.

    checkpoints/
        step_00001000/
            state.safetensors    trained/..., replica/..., optimizer/<state>/<parameter>, rng/<rank>/<generator>
            state.json           step, method, world size, and the hash of state.safetensors
        .step_00002000.*.tmp/    a save that was cut short; removed at the next start

The directory is written by `shards.format.atomic_write`. Nothing is pickled. The position in the data is the step
itself: see shards.read.EpochOrder.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fss.compat import CHECKPOINT, current_fields
from fss.distributed.context import DistributedContext
from fss.distributed.zero import SteppedOptimizer
from fss.errors import RunError, WeightsError, at_least
from fss.methods.base import Method
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
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, config: CheckpointConfig, context: DistributedContext) -> None:
        self._folder = folder
        self._config = config
        self._context = context

    def save(self, state: State, step: int) -> Path:
        """Write checkpoint `step`, and delete older ones beyond `keep_last`. Collective.

        Raises RunError, and leaves everything on disk as it was, if the disk does not take it.
        """
        generators = self._context.gather_objects(rng_state(self._context.device))
        tensors = state.tensors()
        return self._context.on_main(lambda: self._write(state.name, tensors, step, generators))

    def _write(self, method: str, tensors: dict[str, Tensor], step: int, generators: list[dict[str, Tensor]]) -> Path:
        final = self._checkpoint(step)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        tensors |= {f"rng/{rank}/{name}": t for rank, rngs in enumerate(generators) for name, t in rngs.items()}
        try:
            with atomic_write(final) as temporary:
                temporary.mkdir(parents=True)
                save_file(tensors, temporary / "state.safetensors")
                header = {
                    "format": FORMAT,
                    "method": method,
                    "step": step,
                    "world_size": self._context.world_size,
                    "sha256": file_hash(temporary / "state.safetensors"),
                }
                (temporary / "state.json").write_text(json.dumps(header))
        except (OSError, SafetensorError) as error:
            whole = self.steps()
            raise RunError(
                f"cannot save step {step} in {self._folder} ({error}): free some space and run the same command again"
                + (f"; checkpoint {whole[-1]} is whole" if whole else "; no checkpoint of this run exists yet")
            ) from None
        # A later one is damaged, since the run resumed before it: it must not count as one that is kept.
        for old in [other for other in self.steps() if other <= step][: -self._config.keep_last]:
            shutil.rmtree(self._checkpoint(old), ignore_errors=True)
        return final

    def _checkpoint(self, step: int) -> Path:
        return self._folder / f"step_{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first."""
        if not self._folder.is_dir():
            return []
        return sorted(int(p.name.removeprefix("step_")) for p in self._folder.glob("step_*") if p.is_dir())

    def resume(self, state: State) -> tuple[int, list[str]]:
        """Load the newest whole checkpoint. Collective.

        Returns its step, 0 if there is none, and messages about anything unusual. A damaged checkpoint is skipped with
        a message, and stays on disk. Raises WeightsError if all are damaged or the newest does not fit.
        """
        step, messages = self._context.on_main(self._newest)
        if step is None:
            return 0, messages
        header, tensors = read(self._checkpoint(step))
        if header["method"] != state.name:
            raise WeightsError(f"checkpoint {step} is of method {header['method']}, this run trains {state.name}")
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

    def _newest(self) -> tuple[int | None, list[str]]:
        messages = []
        for leftover in self._folder.glob(".step_*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
            messages.append(f"removed {leftover.name}: a save that was cut short")
        for step in reversed(self.steps()):
            try:
                verify(self._checkpoint(step))
                return step, messages
            except WeightsError as error:
                messages.append(f"{error}; trying the one before it")
        if messages and self.steps():
            raise WeightsError(f"no checkpoint in {self._folder} is whole ({messages[-1]}): delete them to start again")
        return None, messages


def verify(folder: Path) -> dict[str, Any]:
    """The header of the checkpoint in `folder`. Raises WeightsError unless it is whole and of this format."""
    try:
        header = current_fields(json.loads((folder / "state.json").read_text()), CHECKPOINT)
        digest = file_hash(folder / "state.safetensors")
    except (OSError, ValueError) as error:
        raise WeightsError(f"checkpoint {folder} is damaged ({error})") from None
    if header.get("format") != FORMAT:
        raise WeightsError(f"checkpoint {folder} has format {header.get('format')}, this program reads {FORMAT}")
    if digest != header["sha256"]:
        raise WeightsError(f"checkpoint {folder} is damaged (its hash is not the one recorded)")
    return header


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a checkpoint that `verify` has passed."""
    with safe_open(folder / "state.safetensors", framework="pt") as file:
        header = current_fields(json.loads((folder / "state.json").read_text()), CHECKPOINT)
        return header, {name: file.get_tensor(name) for name in file.keys()}


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of this process's generators from which methods on `device` may draw."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore the generators of this process."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
