"""Few-shot segmentation: methods, their training, their evaluation and their use on own pictures."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fss.inference.segmenter import Segmenter

# DDP warns on every rank of a flag that is set on purpose (see fss.distributed.context); torch reads this at import.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def load(weights: str | Path | None = None, **options: Any) -> "Segmenter":
    """Load a segmenter: of the method in an export, or of one without training by its name and options.

    fss.load("runs/demo/qgnet/best.safetensors"), fss.load(method="gfsam", dino_weights=FILE, sam_weights=FILE).
    options: as of `fss.inference.segmenter.load`. Raises UserError if a file or an option does not fit.
    """
    from fss.inference.segmenter import load

    return load(weights, **options)
