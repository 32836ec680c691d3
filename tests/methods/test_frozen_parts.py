"""What a method says is frozen does not change while it is trained, and its checks of equality leave it out."""

from dataclasses import replace

import pytest
import torch

from fss.methods import METHODS
from fss.methods.base import StepContext
from fss.methods.msanet.config import BAMConfig
from fss.train.checkpoint import State
from fss.train.optim import OptimConfig, build_optimizer
from tests.support.made_episodes import episodes

FROZEN = {
    "qgnet": {"backbone", "prior"},
    "qgnet, reference": set(),
    "mshnet": {"backbone"},
    "msanet": {"backbone", "base"},
    "bam": {"backbone", "base"},
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_parts_stay_as_they_are(name, qgnet_config, msanet_config, mshnet_config):
    qgnet = replace(qgnet_config, prior_map="on", heads=True)
    config = {
        "qgnet": lambda: qgnet,
        "qgnet, reference": lambda: replace(qgnet, bn="reference"),
        "mshnet": lambda: mshnet_config,
        "msanet": msanet_config,
        "bam": lambda: msanet_config(BAMConfig),
    }[name]()
    torch.manual_seed(0)
    method = METHODS[config.name](config)
    state = State(name=name, method=method, optimizer=build_optimizer(method, OptimConfig(lr=0.1)))
    before = {key: tensor.clone() for key, tensor in state.method_tensors().items()}
    loss, _ = method.loss(episodes(2), StepContext(total_steps=2))
    loss.backward()
    state.optimizer.step()
    method.after_step(StepContext(total_steps=2))
    changed = {key for key, tensor in state.method_tensors().items() if not tensor.equal(before[key])}
    checked = state.changing_tensors().keys()
    assert changed <= checked
    assert any(key.startswith("trained/") for key in changed)
    parts = {key.split("/")[1].split(".")[0] for key in before.keys() - checked}
    assert parts == FROZEN[name] == set(method.frozen)
    assert any(key.startswith("replica/") for key in changed) == (name == "qgnet, reference")
