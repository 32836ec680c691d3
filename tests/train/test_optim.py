"""The learning rate: in global units, and where it stands at any step."""

import math
from dataclasses import replace

import pytest
import torch

from fss.errors import ConfigError
from fss.train.optim import OptimConfig, Schedule, build_optimizer, meta_optim, set_learning_rate
from tests.support.toy import Toy


def test_cosine_moves_once_an_epoch_and_scales_with_the_batch():
    s = Schedule(config=OptimConfig(epochs=4, lr=0.03), images=1000, batch=128)
    assert s.steps == round(4 * 1000 / 128)
    assert s.lr(0) == s.lr(7) == pytest.approx(0.03 * 128 / 256)
    total = s.epoch(s.steps)
    assert s.lr(8) == pytest.approx(0.015 / 2 * (1 + math.cos(math.pi * 1 / total)))
    by_step = Schedule(config=OptimConfig(epochs=4, lr=0.03, granularity="step"), images=1000, batch=128)
    assert by_step.lr(0) > by_step.lr(1) > by_step.lr(s.steps - 1) > 0


def test_poly_falls_at_every_step_to_nothing():
    s = Schedule(config=meta_optim(steps=10), images=7, batch=4)
    assert [s.lr(t) for t in range(10)] == pytest.approx([0.025 * (1 - t / 10) ** 0.9 for t in range(10)])
    assert s.lr(10) == 0
    once = Schedule(config=OptimConfig(steps=10, schedule="poly", power=2), images=20, batch=4)  # 5 steps an epoch
    base = 0.03 * 4 / 256
    assert [once.lr(t) for t in (0, 4, 5, 9)] == pytest.approx([base, base, base / 4, base / 4])


def test_exponential_leaves_a_share_of_the_rate_every_epoch():
    config = OptimConfig(epochs=3, lr=1, reference_batch_size=4, schedule="exponential", gamma=0.5)
    s = Schedule(config=config, images=8, batch=4)
    assert [s.lr(t) for t in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    smooth = Schedule(config=replace(config, granularity="step"), images=8, batch=4)
    assert smooth.lr(1) == pytest.approx(0.5**0.5)


def test_the_rate_of_a_meta_training_is_per_episode():
    """0.025 for 4 episodes reaches the weights, as in PFENet's loop; 8 episodes get twice that (its COCO recipe)."""
    for batch, rate in ((4, 0.025), (8, 0.05)):
        assert Schedule(config=meta_optim(), images=1000, batch=batch).lr(0) == rate


def test_warm_up_rises_to_the_base_rate():
    config = OptimConfig(epochs=10, lr=1, reference_batch_size=100, warmup=1, schedule="constant")
    s = Schedule(config=config, images=1000, batch=100)
    rates = [s.lr(step) for step in range(12)]
    assert rates == sorted(rates) and rates[0] > 0
    assert rates[10:] == [1, 1]


def test_steps_replace_epochs():
    assert Schedule(config=OptimConfig(epochs=4, steps=7), images=1000, batch=100).steps == 7


def test_the_options_reach_the_optimizer():
    sgd = build_optimizer(Toy(), OptimConfig(lr=0.5, momentum=0.8, weight_decay=0.01))
    assert type(sgd) is torch.optim.SGD
    assert {key: sgd.defaults[key] for key in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.5,
        "momentum": 0.8,
        "weight_decay": 0.01,
    }
    adamw = build_optimizer(Toy(), OptimConfig(optimizer="adamw", lr=0.5, betas=(0.8, 0.9), weight_decay=0.01))
    assert type(adamw) is torch.optim.AdamW
    assert {key: adamw.defaults[key] for key in ("lr", "betas", "weight_decay")} == {
        "lr": 0.5,
        "betas": (0.8, 0.9),
        "weight_decay": 0.01,
    }


def test_groups_scale_their_rate():
    one, other = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [other], "lr_scale": 10}], lr=1)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 5.0]


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"epochs": 0},
        {"lr": -1},
        {"accumulate": 0},
        {"power": -1},
        {"gamma": 0},
        {"gamma": 1.1},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"clip_norm": 0},
    ],
)
def test_impossible_values_are_refused(options):
    (key,) = options
    with pytest.raises(ConfigError, match=f"optim.{key}"):
        OptimConfig(**options)
