"""The methods that the benches build: their random weights can be trained."""

import sys

import pytest
import torch

from fss.methods.base import StepContext
from tests.support.places import ROOT

sys.path.insert(0, str(ROOT / "bench"))

from traffic import META, episodes


@pytest.mark.parametrize("name", META)
def test_methods_have_finite_weights_and_losses(name):
    method = META[name](backbone="resnet18", size=65)
    tensors = [*method.trainable.state_dict().values(), *method.non_trainable.state_dict().values()]
    assert all(tensor.isfinite().all() for tensor in tensors)
    optimizer = torch.optim.SGD(method.param_groups(), lr=1e-3)
    for step in range(2):
        loss, _ = method.loss(episodes(2, 65), StepContext(step=step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(StepContext())
        assert loss.isfinite()
