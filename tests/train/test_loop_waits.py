"""The training loop on a device that counts the waits of the host.

Control words and rows of the log come by copies that were started earlier. They are not counted: on CUDA the host waits
for their events, for that of a step when the next one has been launched, and for that of a row where it is logged.
"""

from itertools import pairwise

import pytest
import torch

from fss.data.loader import BadSamples
from fss.tracking.log import Log, LogConfig
from fss.tracking.run_dir import RunDir
from fss.tracking.tracker import RunInfo
from fss.train.checkpoint import CheckpointConfig, Checkpoints, State
from fss.train.loop import Trainer
from fss.train.optim import OptimConfig, Schedule, build_optimizer
from tests.support.contexts import joined
from tests.support.counted_context import jobs_on_the_device
from tests.support.counted_device import DEVICE
from tests.support.toy import Toy, batches


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_host_waits_only_where_it_measures_or_saves(tmp_path, counted, optimizer):
    waits: list[int] = []  # before each forward pass

    class Counting(Toy):
        def loss(self, batch, context):
            waits.append(count.waits.total())
            return super().loss(batch, context)

    with counted() as count, jobs_on_the_device(), joined() as context:
        method = Counting()
        for part in (method.trainable, method.non_trainable):
            part.to(DEVICE)
        config = OptimConfig(steps=12, lr=0.1, optimizer=optimizer, clip_norm=1.0)
        inner = build_optimizer(method, config)
        run = RunDir(tmp_path)
        run.open({}, "")
        about = RunInfo(kind="pretrain", config={})
        log = Log(run, LogConfig(every=4, wandb="off"), active=True, about=about, total=12, unit="images")
        trainer = Trainer(
            method=method,
            optimizer=inner,
            context=context,
            state=State(name="toy", method=method, optimizer=inner),
            schedule=Schedule(config=config, images=24, batch=12),
            checkpoints=Checkpoints(run.checkpoints, CheckpointConfig(), context),
            log=log,
            bad_samples=BadSamples(0.01),
            nan_dump=run.folder / "nonfinite",
            log_every=4,
            save_every=6,
            check_every=0,
        )
        assert trainer.run(batches(0, 0, 1), 0, lambda done: method.trainable[0].weight.sum().item(), (10).__eq__) == 12
        log.close()
    waited = [done for done, (now, after) in enumerate(pairwise(waits), 1) if after > now]
    assert waited == [6, 10], "saved after 6 steps, measured after 10"
    assert [row["step"] for row in run.rows()] == [1, 4, 8, 12]
    assert all(torch.isfinite(p.values).all() for p in method.trainable.parameters())
