"""Evaluate a method on episodes of classes that it never saw.

accelerate launch launch/evaluate.py --weights runs/meta_embedded/qgnet.safetensors
accelerate launch launch/evaluate.py --weights runs/meta_embedded/qgnet.safetensors --eval.protocol pfenet
accelerate launch launch/evaluate.py --method prototype --data.shards DIR --episodes.scheme pascal --episodes.fold 0
"""

import sys

from fss.command import command
from fss.config import EvalJob, parse, snapshot
from fss.jobs.evaluate import evaluate


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command with the words `argv` (None: those of the process); returns the exit code."""
    job = parse(EvalJob, argv, prog="launch/evaluate.py", default="evaluate/default.yaml")
    return evaluate(job, snapshot(job))


if __name__ == "__main__":
    sys.exit(main())
