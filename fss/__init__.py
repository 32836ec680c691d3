"""Few-shot segmentation: methods, their training and their evaluation."""

import os

# DDP warns on every rank about a flag that is set on purpose (see fss.distributed.context); torch reads this at import.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def load(weights=None, **options):
    """Load a `fss.inference.segmenter.Segmenter` from an export, or of a method that needs no training, by its options.

    fss.load("runs/demo/qgnet/best.safetensors"), fss.load(method="gfsam", dino_weights=FILE, sam_weights=FILE).
    """
    from fss.inference.segmenter import load

    return load(weights, **options)
