"""The learning rates that the published loops set, group by group, by the shipped schedule."""

import re
from collections.abc import Mapping

import numpy as np
import torch

from fss.train.optim import OptimConfig, Schedule, set_learning_rate

POWER = 0.9
BEYOND = 10  # the published function multiplies the rate of every group after `index_split` by this


def check_poly(golden: Mapping[str, np.ndarray]) -> None:
    """Every `poly_base<lr>_split<index>_max<steps>` [iterations, groups] of the file, at its `poly_iters`."""
    for name in golden:
        if found := re.fullmatch(r"poly_base(\S+?)_split(-?\d+)_max(\d+)", name):
            base, split, steps = float(found[1]), int(found[2]), int(found[3])
            recorded = golden[name]
            config = OptimConfig(
                lr=base, reference_batch_size=1, steps=steps, schedule="poly", power=POWER, granularity="step"
            )
            schedule = Schedule(config=config, images=7, batch=1)
            groups = [
                {"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": BEYOND if index > split else 1}
                for index in range(recorded.shape[1])
            ]
            optimizer = torch.optim.SGD(groups, lr=base)
            ours = []
            for iteration in golden["poly_iters"]:
                set_learning_rate(optimizer, schedule.lr(int(iteration)))
                ours.append([group["lr"] for group in optimizer.param_groups])
            np.testing.assert_allclose(ours, recorded, rtol=1e-9, atol=1e-15, err_msg=name)
