"""Segment your own pictures by a few examples of your own.

    python launch/predict.py --weights runs/demo/qgnet/best.safetensors --support cat.jpg --mask cat.png --query photos
    python launch/predict.py --method gfsam --method.dino_weights FILE --method.sam_weights FILE \
        --support cat.jpg --mask cat.png --name cat --support dog.jpg --mask dog.png --name dog --query photos
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fss.command import command
from fss.config import EPISODIC, Schema, parse
from fss.inference.segment_files import segment_files


@dataclass(frozen=True, kw_only=True)
class PredictJob(Schema):
    """Segment queries by supports."""

    methods = EPISODIC

    support: list[str] = field(default_factory=list)
    """Photograph of an example; once for every example."""
    mask: list[str] = field(default_factory=list)
    """Its mask, in the same order: the object in any colour on black."""
    name: list[str] = field(default_factory=list)
    """Its class, in the same order; without, all examples are of one."""
    query: list[str] = field(default_factory=list)
    """Pictures to segment, or folders of them; may be repeated."""
    out: str = "runs/predictions"
    """Folder for the label maps, the overlays and the contact sheet."""
    size: int | None = None
    """Side of the square that the method sees, pixels; null: its own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if there is a device."""
    method: Any
    weights: str | None = None
    """Export of a meta-training run; its header brings the method and its options."""


REPEATED = ("--support", "--mask", "--name", "--query")


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command with the words `argv` (None: those of the process); returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    words = [f"{word}+" if word in REPEATED else word for word in words]  # jsonargparse appends to a list by this
    job = parse(PredictJob, words, prog="launch/predict.py")
    print(f"label maps, overlays and contact sheet: {segment_files(job, Path(job.out))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
