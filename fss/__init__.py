"""Few-shot segmentation: methods, their training and their evaluation."""

import os

# DDP warns on every rank that a flag we set on purpose is set (see fss.engine.dist); torch reads this at import.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
