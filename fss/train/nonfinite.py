"""Losses and weights that are not finite: the error, and what is written down for whoever looks for the cause."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from fss.distributed.context import DistributedContext
from fss.errors import RunError
from fss.methods.base import Method
from fss.train.control_words import LaunchedStep


def fail_nonfinite(
    step: LaunchedStep, *, context: DistributedContext, folder: Path, say: Callable[[str], None]
) -> None:
    """Raise RunError on all ranks, after this one has written down its batches if its own losses are not finite.

    Collective. folder: for the batches. say: prints a message. The error names ranks, step and samples.
    """
    finite = bool(torch.stack(step.losses).isfinite().all())
    own_keys = [] if finite else [key for batch in step.batches for key in batch.keys]
    if own_keys:
        try:
            _dump(step, own_keys, context.rank, folder)
        except OSError as error:  # the other ranks still need this one's keys
            say(f"the batch of the step could not be written: {error}")
    keys = {rank: keys for rank, keys in enumerate(context.gather_objects(own_keys)) if keys}
    listed = "; ".join(f"rank {rank}: {', '.join(names[:8])}" for rank, names in keys.items())
    raise RunError(
        f"the loss of step {step.index + 1} is not finite on {listed}. Batch and losses are in {folder}, the last "
        "checkpoint is untouched: look at these samples, lower optim.lr, or use run.precision float32"
    )


def _dump(step: LaunchedStep, keys: list[str], rank: int, folder: Path) -> None:
    """Write this rank's batches, their keys, losses and reports, so that the step can be inspected or replayed."""
    own = folder / f"step_{step.index + 1:08d}_rank_{rank}"
    own.mkdir(parents=True, exist_ok=True)
    for index, batch in enumerate(step.batches):
        # safetensors takes neither parts of a larger tensor nor another memory format.
        tensors = {
            name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in batch.tensors().items()
        }
        save_file(tensors, own / f"batch_{index}.safetensors")
    facts = {
        "step": step.index + 1,
        "rank": rank,
        "keys": keys,
        "losses": [repr(loss.item()) for loss in step.losses],
        "reports": [{name: repr(value.item()) for name, value in report.items()} for report in step.reports],
    }
    (own / "facts.json").write_text(json.dumps(facts, indent=1))


def check_weights(method: Method, context: DistributedContext, done: int) -> None:
    """Raise RunError if a weight is not finite after `done` steps: a gradient may overflow where the loss did not.

    Collective; the host waits for the device once.
    """
    weights = method.trainable.state_dict()
    finite = torch.stack([tensor.isfinite().all() for tensor in weights.values()]).cpu().tolist()
    broken = [name for name, whole in zip(weights, finite, strict=True) if not whole]
    if context.any_rank(bool(broken))[0]:
        raise RunError(
            f"{broken[0] if broken else 'a tensor of another rank'} is not finite after step {done}, which was not "
            "saved; the last checkpoint is untouched: lower optim.lr, or use run.precision float32"
        )
