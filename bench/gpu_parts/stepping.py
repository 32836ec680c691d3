"""An optimizer step of a method, and what it costs."""

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fss.distributed.context import DistributedContext
from fss.distributed.runtime import RuntimeConfig
from fss.methods.base import StepContext
from fss.train.optim import OptimConfig, build_optimizer
from gpu_parts.cases import Case
from gpu_parts.part import NONE, UNKNOWN, Values, number, percent
from gpu_parts.peaks import peak

STEPS = (2, 50)  # at least and at most, of a measurement
SYNC_WARNING = "synchronizing CUDA operation"


class Step:
    """Takes optimizer steps on one batch, on this rank, as the training loop does.

    The batch starts in page-locked memory, as the loader leaves it. The check of the loss, the log and checkpoints are
    left out.
    """

    def __init__(self, case: Case, batch: int, context: DistributedContext, *, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.context, self.device = context, context.device
        self.method = case.build(context.collectives)
        self.method.trainable.to(self.device)
        self.method.non_trainable.to(self.device)
        if compiled:
            self.method.compile()
        optimizer = build_optimizer(self.method, OptimConfig(lr=1e-5))
        self.forward, self.optimizer = context.wrap(self.method, optimizer)
        given = case.batch(batch)
        self.batch = given.pin_memory() if self.device.type == "cuda" else given
        self.count = 0

    def __call__(self) -> None:
        with self.context.accumulate(self.forward):
            loss, _ = self.forward(self.batch.to(self.device, non_blocking=True), self.count, False)
            self.context.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(StepContext(self.context.collectives, self.count, logged=False))
        self.count += 1


def job_context(device: str, precision: str) -> DistributedContext:
    """The context of a job of this process, or of the ranks that it is one of."""
    return DistributedContext.from_config(RuntimeConfig(device=device, precision=precision, timeout_minutes=0))


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    wait_for(device)
    start = time.perf_counter()
    action()
    wait_for(device)
    return time.perf_counter() - start


def seconds_each(action: Callable[[], object], device: torch.device, budget: float) -> float:
    """The mean seconds of calls in a row, as many as take about `budget` seconds; they have been warmed up."""
    least, most = STEPS
    count = min(max(round(budget / seconds_of(action, device)), least), most)
    return seconds_of(lambda: [action() for _ in range(count)], device) / count


def flops_of(action: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of one call, backward passes included."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def host_waits(action: Callable[[], object], device: torch.device) -> int | None:
    """How often the host waits for a GPU in one call, as torch's debug mode counts it; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            action()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum(SYNC_WARNING in str(warning.message) for warning in caught)


@dataclass(frozen=True)
class DeviceWork:
    """What a GPU does in a call."""

    kernels: int
    """Launched kernels; copies and fills are not among them."""
    busy: float
    """Seconds in which at least one kernel, copy or fill runs."""


def device_work(action: Callable[[], object], device: torch.device) -> DeviceWork | None:
    """The work of one call, from torch's profiler; None on a CPU."""
    if device.type != "cuda":
        return None
    wait_for(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        action()
        wait_for(device)
    return work_of(found.events())


def work_of(events: Iterable[FunctionEvent]) -> DeviceWork:
    """The work that the profiler's events show. Those of a CPU and annotations, which enclose kernels, do not count."""
    on_gpu = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    kernels = sum(not event.name.startswith(("Memcpy", "Memset")) for event in on_gpu)
    microseconds = covered((event.time_range.start, event.time_range.end) for event in on_gpu)
    return DeviceWork(kernels, 1e-6 * microseconds)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans (start, end), which may overlap: streams run side by side."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def peak_gib(device: torch.device) -> float | None:
    """The most memory that tensors have taken since the peak was reset; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def utilization(flops_each: float, device: torch.device, precision: str) -> str:
    """The share of the card's peak that so many FLOP/s are."""
    if device.type != "cuda":
        return NONE
    most = peak(torch.cuda.get_device_name(device), precision)
    return percent(flops_each / (1e12 * most)) if most else UNKNOWN


COLUMNS = (
    "ms/step",
    "images or episodes/s",
    "host waits/step",
    "kernels/step",
    "GPU busy",
    "TFLOP/s",
    "MFU",
    "peak GiB",
)


def cost(step: Step, samples: int, precision: str, budget: float) -> Values:
    """COLUMNS -> the cost of a step over `samples` images or episodes; about `budget` seconds are timed."""
    device = step.device
    flops = flops_of(step)
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_each(step, device, budget)
    memory = peak_gib(device)
    waits, work = host_waits(step, device), device_work(step, device)
    kernels, busy = NONE, NONE
    if work:  # without a kernel the profiler has no access to the GPU's counters
        kernels = number(work.kernels) if work.kernels else UNKNOWN
        busy = percent(min(1.0, work.busy / seconds)) if work.kernels else UNKNOWN
    found = (
        number(1e3 * seconds),
        number(samples / seconds),
        number(waits),
        kernels,
        busy,
        number(flops / seconds / 1e12),
        utilization(flops / seconds, device, precision),
        number(memory),
    )
    return dict(zip(COLUMNS, found, strict=True))
