"""The ranks of a job. The only file that imports accelerate.

On a machine without a GPU, accelerate may start one process where two were requested, or two that each believe that
there is no other, with exit code 0. `DistributedContext` therefore compares what runs with what was requested.
"""

import contextlib
import datetime
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from fss.collectives import Collectives, SingleProcess
from fss.distributed.flight_recorder import record_collectives, write_collectives
from fss.distributed.heartbeat import HeartbeatBoard
from fss.distributed.host_collectives import HostCollectives
from fss.distributed.launch_checks import check_deepspeed, check_launcher, check_world_size, use_cpu
from fss.distributed.process_group import ProcessGroupCollectives, default_store, gloo_group, set_timeout
from fss.distributed.runtime import RuntimeConfig
from fss.distributed.watchdog import Watchdog
from fss.distributed.wrapping import LossForward, make_contiguous, match_weight_strides
from fss.distributed.zero import SteppedOptimizer, ZeroOptimizer
from fss.errors import RunError
from fss.methods.base import Method
from fss.nn.transfer import start_to_host
from fss.numerics import numerics

NO_TIMEOUT = datetime.timedelta(days=365)


class DistributedContext(HostCollectives):
    """This process's place among the ranks of a job, and every collective that the engine needs.

    world_size: the number of ranks that the user requested (`run.world_size`); None accepts what the launcher started.
    device: 'auto', 'cpu' or 'cuda'. precision, deterministic: see `fss.numerics.numerics`, entered until `close`;
    'bf16' is autocast besides. Parameters stay float32.
    timeout_minutes: how long ranks may take to connect, and later how long a rank may make no progress; 0 for no limit.
    Raises RunError if the processes that run are not the ranks that were requested.

    To be used in a `with` statement: if a collective fails inside, RunError names the ranks that did not enter it.
    """

    def __init__(
        self,
        *,
        world_size: int | None,
        device: str,
        precision: str,
        accumulate: int,
        timeout_minutes: float,
        deterministic: bool = False,
    ) -> None:
        zero = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
        cpu = use_cpu(device, zero)
        launched = "LOCAL_RANK" in os.environ  # accelerate takes a named backend to mean that a group exists
        timeout = datetime.timedelta(minutes=timeout_minutes) or NO_TIMEOUT
        process_group = InitProcessGroupKwargs(backend="gloo" if cpu and launched else None, timeout=timeout)
        # DDP rebuilds its buckets after the first step unless it looks for unused parameters; a resumed run would then
        # reduce in another order than the uninterrupted one, and differ in the last bit on three ranks and more.
        ddp = DistributedDataParallelKwargs(
            find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        record_collectives()
        with contextlib.ExitStack() as settings:
            settings.enter_context(numerics(precision, deterministic=deterministic))  # before a GPU is used
            try:
                self.accelerator = Accelerator(
                    # True means plain DDP; DeepSpeed itself takes the CPU if there is nothing else.
                    cpu=cpu and not zero,
                    mixed_precision="no",  # see autocast
                    gradient_accumulation_steps=accumulate,
                    kwargs_handlers=[process_group, ddp],
                )
            except dist.DistError as error:
                raise RunError(
                    f"the {os.environ['WORLD_SIZE']} ranks did not connect within {timeout_minutes:g} minutes: see the "
                    f"log of the other nodes, and check that they reach {os.environ['MASTER_ADDR']} ({error})"
                ) from error
            self.device = self.accelerator.device
            self.precision = precision
            rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
            try:
                check_world_size(ranks, world_size)
                check_launcher(self.accelerator.state, self.device, bf16=precision == "bf16")
                check_deepspeed(self.accelerator.state.deepspeed_plugin)
            except RunError:
                self._destroy_process_group()
                raise
            self._settings = settings.pop_all()
        several = ranks > 1
        # Control messages are single bytes on the CPU: they must not wait for, or stall, the device's own stream.
        control = gloo_group(timeout) if several and not cpu else None
        super().__init__(HeartbeatBoard(default_store() if several else None, rank, ranks), rank, ranks, control)
        self.collectives: Collectives = SingleProcess()
        if several:
            self.collectives = ProcessGroupCollectives(self._board.enter_collective, self._ranks_per_node())
        for group, group_device in ((dist.group.WORLD, self.device), (self._control, torch.device("cpu"))):
            if group:  # all ranks are connected: from now on the watchdog decides what takes too long
                set_timeout(group, group_device, NO_TIMEOUT)
        self._watchdog = Watchdog(self._board, timeout.total_seconds())
        self._watchdog.write_traces = partial(write_collectives, rank=rank, device=self.device)
        self._watchdog.start()

    @classmethod
    def from_config(cls, config: RuntimeConfig, *, accumulate: int = 1, threads: int | None = None) -> Self:
        """The context of a job with the options of `run`; sets torch's CPU threads.

        threads: the default of `run.threads`; None leaves what the launcher set.
        """
        if threads := config.threads or threads:
            torch.set_num_threads(threads)
        return cls(
            world_size=config.world_size,
            device=config.device,
            precision=config.precision,
            deterministic=config.deterministic,
            accumulate=accumulate,
            timeout_minutes=config.timeout_minutes,
        )

    def wrap(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        total_steps: int = 1,
        clip_norm: float | None = None,
    ) -> tuple[nn.Module, SteppedOptimizer]:
        """Wrap a method and its optimizer for training on all ranks.

        Returns the module to call, `module(batch, step, logged)`, instead of the method's loss, and the optimizer to
        step and to save. total_steps: optimizer steps of the whole run. clip_norm: the largest global gradient norm, as
        for `clip_gradients`, which must be called too.
        """
        forward = LossForward(method, self.collectives, self.autocast, total_steps)
        plugin = self.accelerator.state.deepspeed_plugin
        if plugin is None:
            match_weight_strides(forward)
            return self.accelerator.prepare(forward, optimizer)
        make_contiguous(forward)
        if clip_norm is not None:
            plugin.deepspeed_config["gradient_clipping"] = clip_norm
        engine, _ = self.accelerator.prepare(forward, optimizer)
        return engine, ZeroOptimizer(engine, optimizer)

    def _ranks_per_node(self) -> int | None:
        """The number of ranks that the launcher started on every node, None if it differs. Collective."""
        numbers = set(self.gather_objects(int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))))
        return numbers.pop() if len(numbers) == 1 else None

    def autocast(self) -> contextlib.AbstractContextManager:
        """Context in which a forward computes in the precision of the job; parameters stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def accumulate(self, forward: nn.Module) -> contextlib.AbstractContextManager:
        """Context of one micro-step: gradients are reduced over ranks only at the last one of an optimizer step."""
        return self.accelerator.accumulate(forward)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of loss / accumulate; loss: a scalar."""
        self._board.announce_collective()
        if self.accelerator.state.deepspeed_plugin is None:
            self.accelerator.backward(loss)
        else:  # accelerate's own method would step here, before the loss was checked
            wrapped = self.accelerator.deepspeed_engine_wrapped
            wrapped.engine.set_gradient_accumulation_boundary(self.accelerator.sync_gradients)
            wrapped.engine.backward(loss)

    def clip_gradients(self, method: Method, max_norm: float) -> Tensor | None:
        """Scale the gradient so that its global norm is at most max_norm. Call it before the optimizer's step.

        Returns the norm before clipping, a scalar on the device; None under DeepSpeed, which clips in its own step.
        """
        if self.accelerator.state.deepspeed_plugin is not None:
            return None
        return nn.utils.clip_grad_norm_(method.trainable.parameters(), max_norm)

    def grad_norm(self, method: Method, optimizer: SteppedOptimizer) -> Tensor:
        """Global norm of the gradient, averaged over all ranks, that the last step took; before it is set to zero.

        Returns a scalar on the device.
        """
        if isinstance(optimizer, ZeroOptimizer):
            return torch.tensor(optimizer.grad_norm(), device=self.device)
        gradients = [p.grad for p in method.trainable.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
                missing = ", ".join(self._board.missing_ranks()) or "no single rank"
                raise RunError(
                    f"{missing} did not reach the collective in which rank {self.rank} waits: dead, or hanging in its "
                    "data, its device or its network; run the same command again to resume from what was saved"
                ) from error
        finally:
            self.close(failed=error is not None)

    def report_progress(self, activity: str) -> None:
        """Report to the other ranks that this one makes progress. activity: completes 'it is ...' in messages."""
        self._board.report_progress(activity)

    def on_abort(self, action: Callable[[], object], traces: Path | None = None) -> None:
        """Call `action` if the watchdog must end this process; replaces what was given before.

        traces: folder into which each rank then writes its last collectives, as `flight_recorder.write_collectives`.
        """
        self._watchdog.on_abort, self._watchdog.traces = action, traces

    def start_mean(self, values: dict[str, Tensor]) -> Callable[[], dict[str, float]]:
        """Start to average scalars over ranks; the function returned waits for the device. Collective at its start."""
        stacked = torch.stack([value.detach().float().reshape(()) for value in values.values()])
        self.collectives.mean_([stacked])
        arrives = start_to_host(stacked)
        return lambda: dict(zip(values, arrives().tolist(), strict=True))

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        self._board.announce_collective()
        self.accelerator.wait_for_everyone()

    def close(self, failed: bool = False) -> None:
        """Leave the process group, without which torch complains at exit; this process may then join another job.

        failed: the other ranks do not leave now. NCCL would wait for them, and nobody would see the error.
        """
        self._settings.close()
        self._watchdog.close()  # it uses the store, which goes away with the group
        self._destroy_process_group(wait=not (failed and self.device.type == "cuda"))

    @staticmethod
    def _destroy_process_group(wait: bool = True) -> None:
        """Leave the group and reset accelerate's state, one per process. Private API, present up to accelerate 1.15."""
        if wait and dist.is_initialized():
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
