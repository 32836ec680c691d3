"""Measure how much of the objects a method's region maps cover (QGNet, Eq. 16 and Table VII).

accelerate launch launch/recall.py --weights runs/meta_embedded/qgnet.safetensors --out recall_embedded
"""

import sys
from dataclasses import dataclass

from fss.command import command
from fss.config import EvalJob, parse
from fss.jobs.recall import recall


@dataclass(frozen=True, kw_only=True)
class RecallJob(EvalJob):
    """Measure the recall of a method's region maps on episodes of a fold's novel classes."""

    out: str = "recall"
    """Folder for recall.json, recall.md and recall.png."""


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command with the words `argv` (None: those of the process); returns the exit code."""
    return recall(parse(RecallJob, argv, prog="launch/recall.py", default="evaluate/default.yaml"))


if __name__ == "__main__":
    sys.exit(main())
