"""The options of `run`: where a run is written, and on what it runs."""

from dataclasses import dataclass
from typing import Literal

from fss.errors import at_least
from fss.numerics import Precision


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """The directory of a run, and the ranks and devices that it runs on."""

    dir: str | None = None
    """Run directory; null: runs/ and a name made from the job, its recipe or weights, and the fold. The same
    command resumes the run from its last checkpoint."""
    world_size: int | None = None
    """Number of ranks; the job refuses to start on another number. null: as many as the launcher started."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if there is a device."""
    precision: Precision = "float32"
    """float32: all digits, in convolutions too. tf32: NVIDIA GPUs since Ampere round the factors of matrix products and
    convolutions to 10 bits; no effect on other devices. bf16: autocast; what it leaves in float32 has all digits."""
    deterministic: bool = False
    """Only algorithms that give the same bits in every run on the same kind of GPU; slower. No need for it on a CPU."""
    threads: int | None = None
    """CPU threads of torch in each rank; null leaves what the launcher set."""
    timeout_minutes: float = 30
    """Minutes that a rank, or one that it waits for, may make no progress before the job ends; 0 for no limit."""
    report: bool = True
    """Write the page of the finished run. false saves its time, some seconds; the same command with --run.report true
    writes the page later."""

    def __post_init__(self) -> None:
        at_least("run", self, world_size=1, threads=1, timeout_minutes=0)


@dataclass(frozen=True, kw_only=True)
class RunConfig(RuntimeConfig):
    """The options of `run` for a training run: those of every run, its seed and its initial weights."""

    precision: Precision = "tf32"
    """float32: all digits, in convolutions too. tf32: NVIDIA GPUs since Ampere round the factors of matrix products and
    convolutions to 10 bits; no effect on other devices. bf16: autocast; what it leaves in float32 has all digits.
    Parameters, momentum encoder and queues are float32 always."""
    seed: int = 0
    """Seed of weights, data order and augmentation."""
    compile: bool = False
    """Compile the encoders with torch.compile."""
    check_every: int = 500
    """Steps between checks that weights and queues are the same on all ranks; 0 for never."""
    init_from: str | None = None
    """Weights to begin a new run from: an export of an earlier run of the same method, or, for the prior extractor, an
    official MoCo checkpoint (not a resume)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("run", self, seed=0, check_every=0)
