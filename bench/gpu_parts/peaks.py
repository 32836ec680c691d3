"""Peak arithmetic of GPUs in TFLOP/s: dense, sums in float32, from NVIDIA's datasheets and whitepapers.

float32: without tensor cores. tf32 and bf16: with them; datasheets since Ampere print twice as much, with sparsity.
"""

import re

FLOAT32, TF32, BF16 = "float32", "tf32", "bf16"
PEAKS: dict[str, dict[str, float]] = {
    r"Tesla V100-SXM2-\d+GB": {FLOAT32: 15.7},  # neither TF32 nor bf16
    r"NVIDIA A100[- ](SXM4-\d+GB|PCIE-\d+GB|\d+GB PCIe)": {FLOAT32: 19.5, TF32: 156, BF16: 312},
    r"NVIDIA H100 80GB HBM3": {FLOAT32: 66.9, TF32: 494.7, BF16: 989.4},  # SXM5
    r"NVIDIA H100 PCIe": {FLOAT32: 51.2, TF32: 378, BF16: 756},
    r"NVIDIA H200": {FLOAT32: 66.9, TF32: 494.7, BF16: 989.4},  # SXM; not the H200 NVL
    r"NVIDIA L40S": {FLOAT32: 91.6, TF32: 183, BF16: 362},
    r"NVIDIA GeForce RTX 4090": {FLOAT32: 82.6, TF32: 82.6, BF16: 165.2},
    r"NVIDIA GeForce RTX 3090": {FLOAT32: 35.6, TF32: 35.6, BF16: 71},
}
"""The whole name of a card, as torch.cuda.get_device_name gives it -> precision -> TFLOP/s."""


def peak(card: str, precision: str) -> float | None:
    """TFLOP/s of a card in a precision; None if the table has none, also for a relative such as a laptop's."""
    return next((peaks.get(precision) for name, peaks in PEAKS.items() if re.fullmatch(name, card)), None)
