"""Checkpoints: everything that decides the next step, in a directory that is either whole or not there.

    checkpoints/
        step_00001000/
            state.safetensors    trained/..., replica/..., optimizer/<state>/<parameter>, rng/<rank>/<generator>
            state.json           step, method, world, and the hash of state.safetensors
        .step_00002000.tmp/      a save that was cut short; removed at the next start

The directory is written under the temporary name, synced and renamed. Nothing is pickled. The data cursor is the step
itself: see shards.read.EpochOrder.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fss.compat import CHECKPOINT, current_fields
from fss.distributed.context import DistributedContext
from fss.errors import RunError, WeightsError, at_least
from fss.methods.base import Method

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and how much to keep."""

    every: int = 1000
    """Optimizer steps between checkpoints; the last step is always saved."""
    keep_last: int = 3
    """How many of the newest checkpoints stay on disk."""

    def __post_init__(self) -> None:
        at_least("checkpoint", self, every=1, keep_last=1)


@dataclass(kw_only=True)
class State:
    """What a checkpoint holds, by reference: saving reads it, loading writes it in place."""

    name: str
    """The method's name."""
    method: Method
    optimizer: torch.optim.Optimizer

    def held(self) -> dict[str, Tensor]:
        """The tensors of the method, which every rank holds whole and alike, by name."""
        out = {f"trained/{name}": tensor for name, tensor in self.method.trainable.state_dict().items()}
        return out | {f"replica/{name}": tensor for name, tensor in self.method.non_trainable.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state that is not one rank's own, by name. Collective: under ZeRO ranks hold slices."""
        out = self.held()
        for parameter, name in self._parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    out[f"optimizer/{key}/{name}"] = value
        return out

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put `tensors` back. Raises WeightsError where names or shapes do not fit."""

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
        """Write checkpoint `step`; collective. Older ones go, down to `keep`.

        Raises RunError, with everything on disk as it was, where the disk does not take it.
        """
        generators = self._context.gather_objects(rng_state(self._context.device))
        tensors = state.tensors()
        return self._context.on_main(lambda: self._write(state.name, tensors, step, generators))

    def _write(self, method: str, tensors: dict[str, Tensor], step: int, generators: list[dict[str, Tensor]]) -> Path:
        final = self._folder / f"step_{step:08d}"
        temporary = self._folder / f".step_{step:08d}.tmp"
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        tensors |= {f"rng/{rank}/{name}": t for rank, rngs in enumerate(generators) for name, t in rngs.items()}
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            save_file(tensors, temporary / "state.safetensors")
            facts = {
                "format": FORMAT,
                "method": method,
                "step": step,
                "world_size": self._context.world_size,
                "sha256": file_hash(temporary / "state.safetensors"),
            }
            (temporary / "state.json").write_text(json.dumps(facts))
            for path in (temporary / "state.safetensors", temporary / "state.json", temporary):
                _sync(path)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(temporary, final)
            _sync(self._folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            kept = self.steps()
            raise RunError(
                f"cannot save step {step} in {self._folder} ({error}): free some space and run the same command again"
                + (f"; checkpoint {kept[-1]} is whole" if kept else "; no checkpoint of this run exists yet")
            ) from None
        for old in [other for other in self.steps() if other <= step][: -self._config.keep_last]:
            shutil.rmtree(self._folder / f"step_{old:08d}", ignore_errors=True)
        return final

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first."""
        if not self._folder.is_dir():
            return []
        return sorted(int(p.name.removeprefix("step_")) for p in self._folder.glob("step_*") if p.is_dir())

    def resume(self, state: State) -> tuple[int, list[str]]:
        """Load the newest whole checkpoint; collective. Returns its step, 0 where there is none, and what was odd.

        A damaged checkpoint is passed over, said so, and left where it is.
        """
        step, notes = self._context.on_main(self._newest)
        if step is None:
            return 0, notes
        facts, tensors = read(self._folder / f"step_{step:08d}")
        if facts["method"] != state.name:
            raise WeightsError(f"checkpoint {step} is of method {facts['method']}, this run trains {state.name}")
        state.load(tensors)
        if facts["world_size"] == self._context.world_size:
            mine = {n.split("/")[2]: t for n, t in tensors.items() if n.startswith(f"rng/{self._context.rank}/")}
            set_rng_state(mine, self._context.device)
        else:
            notes.append(
                f"checkpoint {step} was written by {facts['world_size']} ranks, now there are {self._context.world_size}: data order"
                " and weights go on as they were, batch statistics and random generators do not"
            )
        return step, notes

    def _newest(self) -> tuple[int | None, list[str]]:
        notes = []
        for leftover in self._folder.glob(".step_*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
            notes.append(f"removed {leftover.name}: a save that was cut short")
        for step in reversed(self.steps()):
            folder = self._folder / f"step_{step:08d}"
            try:
                verify(folder)
                return step, notes
            except WeightsError as error:
                notes.append(f"{error}; trying the one before it")
        if notes and self.steps():
            raise WeightsError(f"no checkpoint in {self._folder} is whole ({notes[-1]}): delete them to start again")
        return None, notes


def verify(folder: Path) -> dict:
    """The facts of the checkpoint in `folder`. Raises WeightsError unless it is whole and of this format."""
    try:
        facts = current_fields(json.loads((folder / "state.json").read_text()), CHECKPOINT)
        found = file_hash(folder / "state.safetensors")
    except (OSError, ValueError) as error:
        raise WeightsError(f"checkpoint {folder} is damaged ({error})") from None
    if facts.get("format") != FORMAT:
        raise WeightsError(f"checkpoint {folder} has format {facts.get('format')}, this program reads {FORMAT}")
    if found != facts["sha256"]:
        raise WeightsError(f"checkpoint {folder} is damaged (its hash is not the one recorded)")
    return facts


def read(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """Facts and tensors of a checkpoint that `verify` has passed."""
    with safe_open(folder / "state.safetensors", framework="pt") as file:
        facts = current_fields(json.loads((folder / "state.json").read_text()), CHECKPOINT)
        return facts, {name: file.get_tensor(name) for name in file.keys()}


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The generators of this process that methods on `device` may draw from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put the generators of this process back."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
