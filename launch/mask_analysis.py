"""Measure the quality of the masks that GF-SAM merges, and the errors of its points (GF-SAM, section A.5.2).

    accelerate launch launch/mask_analysis.py --config configs/evaluate/gfsam.yaml --data.shards SHARDS \
        --method.dino_weights FILE --method.sam_weights FILE --out masks
"""

import sys
from dataclasses import dataclass

from fss.command import command
from fss.config import EvalJob, parse
from fss.jobs.mask_analysis import analyse


@dataclass(frozen=True, kw_only=True)
class AnalysisJob(EvalJob):
    """Measure the masks that GF-SAM merges, on episodes of a fold's novel classes."""

    out: str = "masks"
    """Folder for masks.json and masks.md."""


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command with the words `argv` (None: those of the process); returns the exit code."""
    return analyse(parse(AnalysisJob, argv, prog="launch/mask_analysis.py", default="evaluate/gfsam.yaml"))


if __name__ == "__main__":
    sys.exit(main())
