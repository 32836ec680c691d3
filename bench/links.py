"""The cost of a collective on given links: the alpha-beta model, where a message of s bytes takes alpha + s / beta.

n ranks, g of them on a node; s bytes handed in by each. `hop` is the alpha and `rate` the beta of the slowest link that
the collective crosses: within a node, or, from two nodes on, between them.

    ring all-reduce    2 (n - 1) (hop + s / (n rate))
    tree all-reduce    2 (log2(n / g) hop between + (g - 1) hop inside) + 2 (n - 1) / n s / rate
    ring all-gather    (n - 1) (hop + s / rate)
    all-to-all         messages hop + the later of
                           g s (n - g) / n / rate of a node    what leaves a node
                           s (min(n, g) - 1) / n / rate inside    what stays in it

A ring crosses every link once, so a node's link carries one ring's bytes and no more. NCCL chooses between ring and
tree, the model takes the cheaper one.
"""

import math
from dataclasses import dataclass

from traffic import Call

USABLE = 0.8
"""Share of a link's nominal rate that a collective gets."""


@dataclass(frozen=True)
class Link:
    """hop: seconds of a message without bytes; rate: bytes a second in each direction."""

    hop: float
    rate: float


@dataclass(frozen=True)
class Cluster:
    """Nodes of `node` ranks. inside: each rank's own link; between: that of a node, which its ranks share."""

    inside: Link
    between: Link
    node: int = 8
    trees: bool = True

    def seconds(self, call: Call, world_size: int) -> float:
        """Of one collective between `world_size` ranks that nothing else disturbs."""
        if world_size == 1:
            return 0.0
        link = self.between if world_size > self.node else self.inside
        match call.kind:
            case "all_reduce":
                return self._all_reduce(call.bytes, world_size, link)
            case "all_gather":
                return (world_size - 1) * (link.hop + call.bytes / link.rate)
            case "all_to_all":
                here = min(world_size, self.node)
                leaving = here * call.bytes * (world_size - here) / world_size / self.between.rate
                staying = call.bytes * (here - 1) / world_size / self.inside.rate
                return min(call.rows, world_size - 1) * link.hop + max(leaving, staying)

    def _all_reduce(self, size: int, world_size: int, link: Link) -> float:
        hops = 2 * (world_size - 1) * link.hop
        if self.trees:
            here = min(world_size, self.node)
            tree = 2 * (math.ceil(math.log2(world_size / here)) * self.between.hop + (here - 1) * self.inside.hop)
            hops = min(hops, tree)
        return hops + 2 * (world_size - 1) / world_size * size / link.rate


def network(gbit_s: float, node: int) -> Cluster:
    """GPUs under NCCL, NVLink of an A100 inside a node, and so many Gbit/s of InfiniBand or RoCE for a node."""
    return Cluster(inside=Link(3e-6, USABLE * 300e9), between=Link(6e-6, USABLE * gbit_s * 1e9 / 8), node=node)
