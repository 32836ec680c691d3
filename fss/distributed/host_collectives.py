"""Collectives between the hosts of the ranks: flags, small objects, and checks that the ranks are alike."""

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fss.distributed.heartbeat import HeartbeatBoard
from fss.distributed.tensor_digest import device_digests
from fss.errors import RunError, UserError

T = TypeVar("T")
PIECE = 1 << 26  # bytes of one broadcast: each is a sign of progress


class HostCollectives:
    """Flags and small objects between the hosts of the ranks; every call is collective.

    board: that of this rank. group: one whose tensors are on the CPU; None: the default one. Without other ranks no
    call sends anything.
    """

    def __init__(self, board: HeartbeatBoard, rank: int, world_size: int, group: dist.ProcessGroup | None) -> None:
        self.rank = rank
        self.world_size = world_size
        self.is_main = rank == 0
        self._board = board
        self._control = group

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any rank. Collective."""
        if self.world_size == 1:
            return flags
        self._board.announce_collective()
        reduced = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(reduced, op=dist.ReduceOp.MAX, group=self._control)
        return tuple(bool(flag) for flag in reduced.tolist())

    def gather_objects(self, value: T) -> list[T]:
        """`value` of every rank, in rank order. Collective; pickles, so it is for our own processes only."""
        if self.world_size == 1:
            return [value]
        self._board.announce_collective()
        out: list = [None] * self.world_size
        dist.all_gather_object(out, value, group=self._control)
        return out

    def on_main(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 while the others wait; every rank gets its result, or its error. Collective."""
        outcome: list = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except (UserError, ValueError, OSError) as error:
                if self.world_size == 1:
                    raise
                outcome[1] = error
            except Exception as error:
                if self.world_size > 1:  # else the others would wait for a result that never comes
                    failure: list = [None, RunError(f"rank 0 failed: {error!r}")]
                    dist.broadcast_object_list(failure, src=0, group=self._control)
                raise
        if self.world_size > 1:
            self._board.announce_collective()
            dist.broadcast_object_list(outcome, src=0, group=self._control)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def broadcast_bytes(self, data: Tensor) -> None:
        """Replace data, uint8 [n] on the CPU, by that of rank 0, in place and piece by piece. Collective."""
        if self.world_size > 1:
            for piece in data.split(PIECE):
                self._board.announce_collective()
                dist.broadcast(piece, src=0, group=self._control)

    def check_same(self, subject: str, value: str, remedy: str = "start all ranks from the same files") -> None:
        """Raise RunError, naming the ranks, unless `value` is the same everywhere. Collective."""
        values = self.gather_objects(value)
        odd = [rank for rank, other in enumerate(values) if other != values[0]]
        if odd:
            raise RunError(
                f"{subject} differs between ranks: rank 0 has {values[0]}, rank {odd[0]} has {values[odd[0]]} "
                f"({len(odd)} of {self.world_size} ranks differ from rank 0): {remedy}"
            )

    def check_equal(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Raise RunError naming the first tensor, of any shape, whose bytes differ between ranks. Collective.

        The host waits for the device once. While all are equal, ranks exchange a single digest.
        """
        if self.world_size == 1:
            return
        named = dict(tensors)
        digests = dict(zip(named, device_digests(named.values()), strict=True))
        whole = hashlib.blake2b("".join(digests.values()).encode()).digest()
        if len(set(self.gather_objects(whole))) == 1:
            return
        for rank, other in enumerate(self.gather_objects(digests)):
            for name, digest in digests.items():
                if other[name] != digest:
                    raise RunError(
                        f"{name} is not the same on rank {rank} as on rank {self.rank}: the ranks have drifted apart; "
                        "resume from the last checkpoint, and report what kind of job this was"
                    )
