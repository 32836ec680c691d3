"""The learning rate: in global units, and where it stands at any step."""

import math

import pytest
import torch

from fss.engine.optim import OptimConfig, Schedule, set_lr
from fss.errors import ConfigError


def test_cosine_moves_once_an_epoch_and_scales_with_the_batch():
    s = Schedule(config=OptimConfig(epochs=4, lr=0.03), images=1000, batch=128)
    assert s.steps == round(4 * 1000 / 128)
    assert s.lr(0) == s.lr(7) == pytest.approx(0.03 * 128 / 256)
    total = s.epoch(s.steps)
    assert s.lr(8) == pytest.approx(0.015 / 2 * (1 + math.cos(math.pi * 1 / total)))
    by_step = Schedule(config=OptimConfig(epochs=4, lr=0.03, granularity="step"), images=1000, batch=128)
    assert by_step.lr(0) > by_step.lr(1) > by_step.lr(s.steps - 1) > 0


def test_warm_up_rises_to_the_base_rate():
    config = OptimConfig(epochs=10, lr=1, lr_batch=100, warmup=1, schedule="constant")
    s = Schedule(config=config, images=1000, batch=100)
    rates = [s.lr(step) for step in range(12)]
    assert rates == sorted(rates) and rates[0] > 0
    assert rates[10:] == [1, 1]


def test_steps_replace_epochs():
    assert Schedule(config=OptimConfig(epochs=4, steps=7), images=1000, batch=100).steps == 7


def test_groups_scale_their_rate():
    one, other = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [other], "lr_scale": 10}], lr=1)
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 5.0]


@pytest.mark.parametrize("options", [{"steps": 0}, {"epochs": 0}, {"lr": -1}, {"accumulate": 0}])
def test_impossible_values_are_refused(options):
    (key,) = options
    with pytest.raises(ConfigError, match=f"optim.{key}"):
        OptimConfig(**options)
