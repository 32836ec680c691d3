"""Properties of every method that is trained on episodes, for the tests of each."""

from collections.abc import Callable, Collection
from dataclasses import fields

import torch
from torch import Tensor

from fss.collectives import Collectives
from fss.data.batch import EpisodeBatch
from fss.methods.base import Method, Report, StepContext
from tests.support.made_episodes import SIZE
from tests.support.thread_ranks import run_ranks

UNKNOWN = {
    "uneven": [SIZE - 2, SIZE // 2, 0, 3],
    "a rank knows nothing": [SIZE, SIZE, 0, 3],
    "nothing is known": [SIZE] * 4,
}
"""Rows of each of four query masks that are 255."""


def assert_all_learns(method: Method, batch: EpisodeBatch, idle: Collection[str] = ()) -> tuple[Tensor, Report]:
    """A step has gradients for all parameters but the `idle` ones, and leaves what is frozen alone: loss and report."""
    before = {name: t.clone() for name, t in method.non_trainable.state_dict().items()}
    loss, report = method.loss(batch, StepContext())
    loss.backward()
    method.after_step(StepContext())
    missing = [n for n, p in method.trainable.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert missing == [*idle]
    assert not any(p.requires_grad for p in method.non_trainable.parameters())
    assert all(torch.equal(t, before[name]) for name, t in method.non_trainable.state_dict().items())
    return loss, report


def assert_loss_falls(method: Method, batch: EpisodeBatch, *, steps: int, to: float) -> None:
    """To less than `to` of what it was, on one batch over and over."""
    optimizer = torch.optim.SGD(method.trainable.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss, _ = method.loss(batch, StepContext(step=step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < to * losses[0]


def assert_ranks_learn_alike(
    make: Callable[[], Method], batch: EpisodeBatch, unknown: list[int], *, rtol: float, atol: float
) -> tuple[Tensor, list[Method]]:
    """Two ranks with half of a batch each have what one has: its loss, and the methods of the one and of the two.

    On average over ranks the loss, all that is reported, and the gradients. unknown: see UNKNOWN.
    """
    for mask, rows in zip(batch.query_mask, unknown, strict=True):
        mask[:rows] = 255
    methods = [make() for _ in range(3)]  # here: threads share one generator

    def learn(collectives: Collectives) -> dict[str, Tensor]:
        method = methods[0 if collectives.world_size == 1 else 1 + collectives.rank]
        share = slice(
            collectives.rank * len(batch) // collectives.world_size,
            (collectives.rank + 1) * len(batch) // collectives.world_size,
        )
        mine = EpisodeBatch(**{f.name: getattr(batch, f.name)[share] for f in fields(batch)})
        loss, report = method.loss(mine, StepContext(collectives))
        loss.backward()
        method.after_step(StepContext(collectives))
        return {"loss": loss.detach(), **report, **{n: p.grad for n, p in method.trainable.named_parameters()}}

    (alone,) = run_ranks(1, learn)
    first, second = run_ranks(2, learn)
    for name, expected in alone.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, expected, rtol=rtol, atol=atol, msg=name)
    return alone["loss"], methods


def assert_bfloat16_is_near(method: Method, batch: EpisodeBatch) -> None:
    """The loss within a tenth of that in float32, in float32 itself, with finite gradients."""
    expected, _ = method.loss(batch, StepContext())
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method.loss(batch, StepContext())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.1, atol=0)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.trainable.parameters())
