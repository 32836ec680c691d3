"""The ranks of a job. The only file that imports accelerate.

What it hides: on a machine without a GPU accelerate may start one process where two were asked for, or two that each
believe they are alone, with exit code 0. `DistributedContext` therefore checks what it finds against what was promised.
"""

import contextlib
import datetime
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from fss.collectives import SingleProcess
from fss.distributed.heartbeat import HeartbeatBoard
from fss.distributed.launch_checks import check_asked, check_size, check_zero, takes_cpu
from fss.distributed.process_group import ProcessGroupCollectives
from fss.distributed.runtime import RuntimeConfig
from fss.distributed.watchdog import Watchdog
from fss.distributed.zero import ZeroOptimizer
from fss.errors import RunError, UserError
from fss.methods.base import Method, StepContext

T = TypeVar("T")
FOREVER = datetime.timedelta(days=365)


class _LossForward(nn.Module):
    """The one forward that DDP or DeepSpeed sees: it owns the trained parameters and calls the method's loss."""

    def __init__(self, method: Method, context: "DistributedContext", total_steps: int) -> None:
        super().__init__()
        self.trainable = method.trainable
        self._autocast = context.autocast
        # A closure, so that `non_trainable` is not registered as a submodule.
        self._loss = lambda batch, step: method.loss(batch, StepContext(context.collectives, step, total_steps))

    def forward(self, batch, step: int):
        with self._autocast():
            return self._loss(batch, step)


class DistributedContext:
    """This process's place among the ranks of a job, and every collective that the engine needs.

    promised: the number of ranks that the user was promised (`run.world_size`), None to accept what the launcher started.
    device: 'auto', 'cpu' or 'cuda'. precision: 'float32' or 'bf16' (autocast; parameters stay float32).
    timeout_minutes: how long ranks may take to come together, and later one may come no further; 0 for ever.
    Raises RunError where the processes that run are not the ranks that were asked for.

    To be entered and left (`with`): where a collective failed inside, RunError names the ranks that did not come to it.
    """

    def __init__(
        self, *, promised: int | None, device: str, precision: str, accumulate: int, timeout_minutes: float
    ) -> None:
        zero = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
        cpu = takes_cpu(device, zero)
        launched = "LOCAL_RANK" in os.environ  # accelerate takes a named backend to mean that a group exists
        timeout = datetime.timedelta(minutes=timeout_minutes) or FOREVER
        process_group = InitProcessGroupKwargs(backend="gloo" if cpu and launched else None, timeout=timeout)
        # DDP rebuilds its buckets after the first step unless it looks for unused parameters; a resumed run would then
        # reduce in another order than the uninterrupted one, and differ in the last bit on three ranks and more.
        ddp = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        try:
            self.accelerator = Accelerator(
                cpu=cpu and not zero,  # which would be plain DDP; DeepSpeed itself takes the CPU where that is all
                mixed_precision="no",  # see autocast
                gradient_accumulation_steps=accumulate,
                kwargs_handlers=[process_group, ddp],
            )
        except dist.DistError as error:
            raise RunError(
                f"the {os.environ['WORLD_SIZE']} ranks did not come together within {timeout_minutes:g} minutes: see "
                f"what the other nodes say, and whether they reach {os.environ['MASTER_ADDR']} ({error})"
            ) from error
        self.rank = self.accelerator.process_index
        self.size = self.accelerator.num_processes
        self.device = self.accelerator.device
        self.is_main = self.rank == 0
        self._bf16 = precision == "bf16"
        try:
            check_size(self.size, promised)
            check_asked(self.accelerator.state, self.device, bf16=self._bf16)
            check_zero(self.accelerator.state.deepspeed_plugin)
        except RunError:
            self._leave()
            raise
        # Control messages are single bytes on the CPU: they must not wait for, or stall, the device's own stream.
        self._control = dist.new_group(backend="gloo", timeout=timeout) if self.size > 1 and not cpu else None
        self._roll = HeartbeatBoard(
            dist.distributed_c10d._get_default_store() if self.size > 1 else None, self.rank, self.size
        )
        self.collectives = ProcessGroupCollectives(self._roll.meet) if self.size > 1 else SingleProcess()
        for group, at in ((dist.group.WORLD, self.device), (self._control, torch.device("cpu"))):
            if group:  # all are here: from now on the watch decides what takes too long
                group._get_backend(at)._set_default_timeout(FOREVER)
        self._watch = Watchdog(self._roll, timeout.total_seconds())
        self._watch.start()

    @classmethod
    def at(cls, place: RuntimeConfig, *, accumulate: int = 1, threads: int | None = None) -> Self:
        """The world of a job at the place that a user gave, its CPU threads set.

        threads: where the place does not say how many; None leaves what the launcher set.
        """
        if threads := place.threads or threads:
            torch.set_num_threads(threads)
        return cls(
            promised=place.world_size,
            device=place.device,
            precision=place.precision,
            accumulate=accumulate,
            timeout_minutes=place.timeout_minutes,
        )

    def wrap(
        self, method: Method, optimizer: torch.optim.Optimizer, total_steps: int = 1
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap a method and its optimizer for training on all ranks.

        Returns the module to call, `module(batch, step)`, in place of the method's loss, and the optimizer to step and
        to save. total_steps: optimizer steps of the whole run.
        """
        forward = _LossForward(method, self, total_steps)
        if self.accelerator.state.deepspeed_plugin is None:
            match_weight_strides(forward)
            return self.accelerator.prepare(forward, optimizer)
        for tensor in (*forward.parameters(), *forward.buffers()):  # it sends tensors as rows of bytes
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
        engine, _ = self.accelerator.prepare(forward, optimizer)
        return engine, ZeroOptimizer(engine, optimizer)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Context in which a forward computes in the precision of the job; parameters stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16)

    def accumulate(self, forward: nn.Module) -> contextlib.AbstractContextManager:
        """Context of one micro-step: gradients travel between ranks only at the last one of an optimizer step."""
        return self.accelerator.accumulate(forward)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of loss / accumulate."""
        self._roll.sign()
        if self.accelerator.state.deepspeed_plugin is None:
            self.accelerator.backward(loss)
        else:  # accelerate's own way would step here, before the loss was looked at
            wrapped = self.accelerator.deepspeed_engine_wrapped
            wrapped.engine.set_gradient_accumulation_boundary(self.accelerator.sync_gradients)
            wrapped.engine.backward(loss)

    def grad_norm(self, method: Method, optimizer: torch.optim.Optimizer) -> float:
        """Of the gradient over all ranks that the last step took, until it is set to zero."""
        if isinstance(optimizer, ZeroOptimizer):
            return optimizer.grad_norm()
        gradients = [p.grad for p in method.trainable.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients).item()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
                missing = ", ".join(self._roll.missing()) or "no single rank"
                raise RunError(
                    f"{missing} did not come to where rank {self.rank} waits: dead, or hanging in its data, its device "
                    "or its network; the same command goes on from what was saved"
                ) from error
        finally:
            self.close(failed=error is not None)

    def report_progress(self, doing: str) -> None:
        """This rank has come further. doing: what it does now, to complete 'it is ...'."""
        self._roll.move(doing)

    def on_abort(self, will: Callable[[], object]) -> None:
        """Have `will` called where the watch must end this process, in the place of one that was given before."""
        self._watch.will = will

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag: is it set on any rank?"""
        if self.size == 1:
            return flags
        self._roll.sign()
        word = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(word, op=dist.ReduceOp.MAX, group=self._control)
        return tuple(bool(flag) for flag in word.tolist())

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Scalars averaged over ranks, as Python floats."""
        stacked = torch.stack([value.detach().float().reshape(()) for value in values.values()])
        self.collectives.mean_([stacked])
        return dict(zip(values, stacked.tolist(), strict=True))

    def gather_objects(self, value: T) -> list[T]:
        """`value` of every rank, in rank order. Values travel between our own processes only."""
        if self.size == 1:
            return [value]
        self._roll.sign()
        out: list = [None] * self.size
        dist.all_gather_object(out, value, group=self._control)
        return out

    def on_main(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 while the others wait; its result, or its error, reaches every rank."""
        outcome: list = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except (UserError, ValueError, OSError) as error:
                if self.size == 1:
                    raise
                outcome[1] = error
            except Exception as error:
                if self.size > 1:  # the others must not wait for what will never come
                    told: list = [None, RunError(f"rank 0 failed: {error!r}")]
                    dist.broadcast_object_list(told, src=0, group=self._control)
                raise
        if self.size > 1:
            self._roll.sign()
            dist.broadcast_object_list(outcome, src=0, group=self._control)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def check_same(self, what: str, value: str) -> None:
        """Raise RunError, naming the ranks, unless `value` is the same everywhere."""
        values = self.gather_objects(value)
        odd = [rank for rank, other in enumerate(values) if other != values[0]]
        if odd:
            raise RunError(
                f"{what} differs between ranks: rank 0 has {values[0]}, rank {odd[0]} has {values[odd[0]]} "
                f"({len(odd)} of {self.size} ranks differ from rank 0): start all ranks from the same files"
            )

    def check_equal(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Raise RunError naming the first tensor whose bytes are not the same on all ranks."""
        if self.size == 1:
            return
        digests = {name: fingerprint(tensor) for name, tensor in tensors}
        for rank, other in enumerate(self.gather_objects(digests)):
            for name, digest in digests.items():
                if other[name] != digest:
                    raise RunError(
                        f"{name} is not the same on rank {rank} as on rank {self.rank}: the ranks have drifted apart; "
                        "resume from the last checkpoint, and report what kind of job this was"
                    )

    def wait(self) -> None:
        """Until every rank is here."""
        self._roll.sign()
        self.accelerator.wait_for_everyone()

    def close(self, failed: bool = False) -> None:
        """Leave the process group, without which torch complains at exit, and let this process start another world.

        failed: this rank leaves alone. NCCL would wait here for the others, and nobody would learn why it leaves.
        """
        self._watch.close()  # it asks the store, which goes with the group
        self._leave(waiting=not (failed and self.device.type == "cuda"))

    @staticmethod
    def _leave(waiting: bool = True) -> None:
        if waiting and dist.is_initialized():
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one per process, whatever is asked
        GradientState._reset_state()


def match_weight_strides(module: nn.Module) -> None:
    """Have the gradients of 1x1 convolutions come with the strides of their weights, as DDP asks.

    Where a kernel is one pixel, several strides name one order of numbers, and torch's convolutions return any of them.
    """
    for weight in module.parameters():
        if weight.requires_grad and weight.shape[2:] == (1, 1):
            weight.register_hook(partial(_restride, strides=weight.stride()))


def _restride(gradient: Tensor, strides: tuple[int, ...]) -> Tensor:
    return gradient.flatten(1).contiguous().as_strided(gradient.shape, strides)


def fingerprint(tensor: Tensor) -> str:
    """A digest of a tensor's bytes, independent of its memory format."""
    flat = tensor.detach().contiguous().reshape(-1).cpu()
    return hashlib.blake2b(flat.view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()
