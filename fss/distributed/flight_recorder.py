"""PyTorch's flight recorder: each rank keeps its last collectives in memory, and writes them down if the job hangs."""

import os
from pathlib import Path

import torch

COLLECTIVES = 2000  # that are kept, some hundred bytes each


def record_collectives() -> None:
    """Switch the recorder on, unless the environment sets its size. To be called before the process group is made."""
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"):  # of torch 2.9 and later; of earlier ones
        os.environ.setdefault(name, str(COLLECTIVES))


def write_collectives(folder: Path, rank: int, device: torch.device) -> None:
    """Write the last collectives of this rank to a file in `folder`, without waiting for any of them.

    Those of NCCL in the format that `torchfrtrace FOLDER` compares across ranks, those of gloo as JSON, which that
    program of torch 2.15 does not take. Private API of torch.
    """
    c10d = torch._C._distributed_c10d
    folder.mkdir(parents=True, exist_ok=True)
    if device.type == "cuda":
        (folder / f"rank_{rank}").write_bytes(c10d._dump_nccl_trace())  # type: ignore[attr-defined] # builds for CUDA have it
    else:
        (folder / f"rank_{rank}.json").write_bytes(c10d._dump_fr_trace_json(backend="gloo"))
