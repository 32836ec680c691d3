"""Train the base learner of BAM and MSANet: a network that segments the base classes of a fold.

    accelerate launch launch/train_base.py                                         the embedded default
    accelerate launch launch/train_base.py --config configs/base/pascal.yaml --episodes.fold 2 --data.shards DIR \
        --method.backbone_weights FILE
"""

import sys

from fss.command import command


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command with the words `argv` (None: those of the process); returns the exit code."""
    # Here, because every data worker imports this file, and needs none of it.
    from fss.config import BaseJob, parse, snapshot
    from fss.jobs.fit import fit

    job = parse(BaseJob, argv, prog="launch/train_base.py", default="base/embedded.yaml")
    return fit(job, snapshot(job))


if __name__ == "__main__":
    sys.exit(main())
