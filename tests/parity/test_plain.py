"""The plain MoCo that speed is measured against gives the recorded values too, as does the shipped one, on one process.

Without batch norm the recorded two ranks are one rank with their batches together.
"""

import importlib.util

import numpy as np
import pytest
import torch
from moco import RecordedEncoder, close, encoder_state

from fss.data.batch import ViewBatch
from fss.methods.base import StepContext
from fss.methods.prior.config import PriorConfig
from fss.methods.prior.method import PriorExtractor
from tests.support.places import ROOT, shared

BENCH = ROOT / "bench" / "plain_moco.py"


class Vectors(torch.nn.Module):
    """The plain MoCo calls its encoder; the recorded one has a trunk and a head."""

    def __init__(self, encoder: RecordedEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.encoder.project(self.encoder.features(image).mean((2, 3)))


def plain(golden):
    """(parameters, step(query, key) -> loss, after(), queue() -> [D, K]) of the plain MoCo."""
    spec = importlib.util.spec_from_file_location("plain_moco", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.PlainMoCo(
        Vectors(RecordedEncoder(encoder_state(golden, "init/encoder_q."))),
        dim=int(golden["dim"]),
        queue=int(golden["K"]),
        momentum=float(golden["m"]),
        temperature=float(golden["T"]),
    )
    model.queue.copy_(torch.from_numpy(golden["init/queue"]))
    return model.encoder_q, lambda query, key, step: model(query, key), lambda: None, lambda: model.queue


def shipped(golden):
    """The same of the method that ships."""
    config = PriorConfig(
        dim=int(golden["dim"]),
        queue=int(golden["K"]),
        temperature=float(golden["T"]),
        momentum=float(golden["m"]),
        local="none",
    )
    method = PriorExtractor(config, encoder=lambda: RecordedEncoder(encoder_state(golden, "init/encoder_q.")))
    queue = method.non_trainable["global_queue"]
    queue.restore(torch.from_numpy(golden["init/queue"].T.copy()), 0)

    def step(query, key, number):
        batch = ViewBatch(query=query, key=key, image=torch.arange(len(query)), keys=[""] * len(query), replaced=[])
        return method.loss(batch, StepContext(step=number))[0]

    return method.trainable, step, lambda: method.after_step(StepContext()), lambda: queue.keys.T


@pytest.mark.parametrize("make", [plain, shipped])
def test_one_process_with_both_batches(make):
    path = shared("golden/moco/moco_2rank_nobn.npz")
    golden = dict(np.load(path, allow_pickle=False))
    module, step, after, queue = make(golden)
    optimizer = torch.optim.SGD(
        module.parameters(),
        lr=float(golden["lr"]),
        momentum=float(golden["sgd_momentum"]),
        weight_decay=float(golden["weight_decay"]),
    )
    for number, (query, key) in enumerate(zip(golden["im_q"], golden["im_k"], strict=True)):
        loss = step(torch.from_numpy(query), torch.from_numpy(key), number)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after()
        close(loss.item(), golden["loss"][number].mean(), f"loss, step {number}")
        close(queue().numpy(), golden["queue"][number], f"queue, step {number}")
    final = encoder_state(golden, "final/encoder_q.")
    for value, expected in zip(module.parameters(), final.values(), strict=True):
        close(value.detach().numpy(), expected.numpy(), "final query encoder")
