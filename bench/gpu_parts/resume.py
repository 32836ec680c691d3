"""A run that is cut and resumed against the same run without a break, bit for bit."""

import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from gpu_parts.jobs import labelled, temporary, train
from gpu_parts.part import ROOT, Part, Row, Settings, Values

COLUMNS = ("tensors", "different")
JOBS = {
    "prior, patch": ("pretrain_prior", "pretrain/embedded", ["--method.local", "patch"]),
    "QGNet": ("meta_train", "meta/embedded", []),
    "base learner": ("train_base", "base/embedded", []),
    "MSHNet": ("meta_train", "meta/mshnet_small_cpu", ["--method.size", "97", "--episodes.scheme", "interleaved"]),
    "prior, region": ("pretrain_prior", "pretrain/embedded", ["--method.local", "region"]),
}
"""Method -> launcher, recipe and more options."""


def measure(name: str, precision: str, settings: Settings) -> Values:
    """The cells of one row. Raises RuntimeError if a tensor differs.

    The run saves after half of its steps and at the end. Its last checkpoint is taken away, so that the same command
    resumes from the first one, in a new process, as after a kill.
    """
    launcher, recipe, words = JOBS[name]
    half = 2 if settings.small else 10
    run = Path(temporary().name) / f"{name}-{precision}".replace(", ", "-")
    options = ["--config", str(ROOT / "configs" / f"{recipe}.yaml"), *words]
    options += ["--method.backbone", "resnet18" if settings.small else "resnet50"]
    options += ["--data.shards", str(labelled(64)), "--data.workers", "0" if settings.small else "2"]
    options += f"--run.deterministic true --run.precision {precision} --optim.steps {2 * half}".split()
    options += f"--checkpoint.every {half} --checkpoint.keep_last 2".split()
    if launcher == "meta_train":
        options += "--episodes.min_area 50 --validate.episodes 2".split()
    train(launcher, settings, run, *options)
    whole = Path(temporary().name) / f"{run.name}.safetensors"
    last = run / "checkpoints" / f"step_{2 * half:08d}"
    shutil.move(last / "state.safetensors", whole)
    shutil.rmtree(last)
    train(launcher, settings, run, *options)
    expected, found = load_file(whole), load_file(last / "state.safetensors")
    if expected.keys() != found.keys():
        raise RuntimeError(f"other tensors: {sorted(expected.keys() ^ found.keys())[0]}")
    different = [name for name, tensor in expected.items() if not same_bits(tensor, found[name])]
    if different:
        raise RuntimeError(f"{len(different)} of {len(expected)} tensors differ, such as {different[0]}")
    return {"tensors": str(len(expected)), "different": "0"}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of any shape have the same type, shape and bytes."""
    same = a.dtype == b.dtype and a.shape == b.shape
    return same and torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def rows(settings: Settings) -> list[Row]:
    """Every kind of training in its default precision; the first also in the others."""
    planned = [(name, "tf32") for name in JOBS] + [("prior, patch", "bf16"), ("prior, patch", "float32")]
    return [
        Row((name, precision), partial(measure, name, precision, settings))
        for name, precision in (planned[:2] if settings.small else planned)
    ]


PART = Part(
    title="Resume, bit for bit",
    note="Runs of 20 steps (when small, 4) with run.deterministic, resumed from the checkpoint after half of them: the "
    "weights, momentum encoders, queues, optimizer states and random generators at the end against those of the run "
    "without a break.",
    labels=("method", "precision"),
    columns=COLUMNS,
    rows=rows,
)
