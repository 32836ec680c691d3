"""Momentum contrast (MoCo, He et al. 2020): the queue of keys, InfoNCE against it, the momentum update."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Queue(nn.Module):
    """The last K keys, first in, first out; any number of new ones can be written at a time.

    The queue starts with random unit vectors from its own generator, equal on every rank for any global seed. Keys are
    float32 rows. Writing does not wait for the device: the position is also kept as a Python integer.
    """

    keys: Tensor
    written: Tensor
    images: Tensor | None

    def __init__(self, size: int, dim: int, *, seed: int = 0, tagged: bool = False):
        """`size` is K, `dim` the length of a key; `tagged` also keeps the image index of every key."""
        super().__init__()
        random = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("keys", F.normalize(random, dim=1))  # [K, D]
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))  # keys written since the start
        self.register_buffer("images", torch.full((size,), -1) if tagged else None)  # [K]
        self.total = 0
        self.register_load_state_dict_post_hook(lambda queue, _: queue._recount())

    def _recount(self) -> None:
        self.total = int(self.written)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def pointer(self) -> int:
        """The slot of the next key."""
        return self.total % len(self)

    @property
    def filled(self) -> int:
        """The number of slots with a key instead of a random vector."""
        return min(self.total, len(self))

    def fill(self) -> Tensor:
        """The share of filled slots in 0..1, a scalar on the queue's device."""
        return self.written.clamp(max=len(self)) / len(self)

    @torch.no_grad()
    def push(self, keys: Tensor, images: Tensor | None = None) -> None:
        """Write keys [n, D] over the oldest ones; if n exceeds K, the last K remain.

        images: [n], the image indices of the keys, for a `tagged` queue.
        """
        skipped = max(0, len(keys) - len(self))
        start = (self.total + skipped) % len(self)
        pairs = [(self.keys, keys)]
        if self.images is not None:
            assert images is not None, "a tagged queue takes the images of its keys"
            pairs.append((self.images, images))
        for slots, rows in pairs:
            rows = rows[skipped:]
            before_end = min(len(self) - start, len(rows))
            slots[start : start + before_end] = rows[:before_end]
            if before_end < len(rows):
                slots[: len(rows) - before_end] = rows[before_end:]
        self.total += len(keys)
        self.written.fill_(self.total)

    @torch.no_grad()
    def restore(self, keys: Tensor, written: int) -> None:
        """Copy the rows [K, D] of another queue, into which `written` keys had been written."""
        self.keys.copy_(keys)
        self.written.fill_(written)
        self._recount()


class Contrast(NamedTuple):
    """InfoNCE of N queries, and statistics that are computed when they are asked for; only `loss` has a gradient."""

    loss: Tensor
    """[N] InfoNCE in nats."""
    own: Tensor
    """[N] logit of the own key."""
    queue: Tensor
    """[N, K] logits of the queue."""
    negatives: Tensor
    """The same, minus infinity for keys that are no negatives."""
    temperature: float
    """By which a cosine is divided to give a logit."""

    @property
    def positive(self) -> Tensor:
        """[N] cosine similarity to the own key."""
        return self.own * self.temperature

    @property
    def negative(self) -> Tensor:
        """[N] mean cosine similarity to the queue."""
        return self.queue.mean(1) * self.temperature

    @property
    def hit(self) -> Tensor:
        """[N] 1 if the own key is nearer than every negative, else 0."""
        return (self.own > self.negatives.amax(1)).float()


def logits(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute cosines over temperature: with the own keys [N] and with the queue [N, K], float32.

    query, key: [N, D], and queue: [K, D], are unit vectors. Under autocast the product with the queue may run in
    bfloat16; everything else is float32.
    """
    scaled = query.float() / temperature  # [N, D]
    return (scaled * key).sum(1), (scaled @ queue.T).float()  # [N], [N, K]


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float, exclude: Tensor | None = None) -> Contrast:
    """Compute InfoNCE of every query against its own key and a queue of negatives (QGNet, Eq. 1 and 6).

    query, key: [N, D]; queue: [K, D]; exclude: bool [N, K], entries of the queue that are no negatives of a query.
    The loss is -log(exp(q.k+ / T) / (exp(q.k+ / T) + sum_i exp(q.k_i / T))), the cross-entropy over K + 1 logits. It is
    computed from the log-sum-exp of the negatives, which saves a concatenation. Gradients flow to `query` only.
    """
    positive, negative = logits(query, key.detach(), queue, temperature)
    all_keys = negative.detach()
    if exclude is not None:
        negative = negative.masked_fill(exclude, float("-inf"))
    loss = F.softplus(negative.logsumexp(1) - positive)
    return Contrast(loss, positive.detach(), all_keys, negative.detach(), temperature)


@torch.no_grad()
def momentum_update(slow: Iterable[Tensor], fast: Iterable[Tensor], momentum: float) -> None:
    """Set slow <- momentum * slow + (1 - momentum) * fast in place, in the precision of `slow` (MoCo, Eq. 2).

    slow, fast: tensors of any shape, pairwise equal ones. `slow` must be float32: in bfloat16 the increments of
    momentum 0.999 are rounded away.
    """
    slow, fast = list(slow), list(fast)
    torch._foreach_lerp_(slow, [f.to(s.dtype) for s, f in zip(slow, fast, strict=True)], 1 - momentum)
