"""Pretrain QGNet's prior extractor from shards.

accelerate launch launch/pretrain_prior.py                                     the embedded default
accelerate launch launch/pretrain_prior.py --config configs/pretrain/coco_slic_200.yaml --data.shards DIR
"""

import sys

from fss.command import command


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command with the words `argv` (None: those of the process); returns the exit code."""
    # Here, because every data worker imports this file, and needs none of it.
    from fss.config import PretrainJob, parse, snapshot
    from fss.jobs.fit import fit

    job = parse(PretrainJob, argv, prog="launch/pretrain_prior.py", default="pretrain/embedded.yaml")
    return fit(job, snapshot(job))


if __name__ == "__main__":
    sys.exit(main())
