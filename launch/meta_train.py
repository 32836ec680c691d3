"""Train a method on episodes.

    accelerate launch launch/meta_train.py                                         the embedded default
    accelerate launch launch/meta_train.py --config configs/meta/qgnet_pascal.yaml --episodes.fold 2 --data.shards DIR \
        --method.backbone_weights FILE --method.prior_weights runs/voc_slic_1000/prior.safetensors
"""

import sys

from fss.command import command


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command with the words `argv` (None: those of the process); returns the exit code."""
    # Here, because every data worker imports this file, and needs none of it.
    from fss.config import MetaTrainJob, parse, snapshot
    from fss.jobs.fit import fit

    job = parse(MetaTrainJob, argv, prog="launch/meta_train.py", default="meta/embedded.yaml")
    return fit(job, snapshot(job))


if __name__ == "__main__":
    sys.exit(main())
