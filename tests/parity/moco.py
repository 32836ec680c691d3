"""The official MoCo on several ranks, step by step, by the shipped method on as many processes."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from fss.methods.base import StepContext
from fss.nn.resnet import Encoder
from tests.support.ranks import on_ranks

TOLERANCE = {"atol": 1e-5, "rtol": 0}


class RecordedEncoder(Encoder):
    """The encoder of a recorded run, built from the names and shapes of its tensors.

    4-d weights are convolutions of stride 2 with padding k // 2, 1-d ones batch norm, and every index that has no
    tensor is a ReLU, one more after the last layer of the body; `fc` is linear layers with ReLUs between.
    """

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        self.body = nn.Sequential(*self._layers(state, "body"), nn.ReLU())
        self.fc = nn.Sequential(*self._layers(state, "fc"))
        self.load_state_dict(state)

    @staticmethod
    def _layers(state: dict[str, torch.Tensor], part: str) -> list[nn.Module]:
        numbers = {int(name.split(".")[1]) for name in state if name.startswith(f"{part}.")}
        layers = []
        for number in range(max(numbers) + 1):
            weight, bias = (state.get(f"{part}.{number}.{which}") for which in ("weight", "bias"))
            if weight is None:
                layers.append(nn.ReLU())
            elif weight.ndim == 4:
                out, into, side, _ = weight.shape
                layers.append(nn.Conv2d(into, out, side, stride=2, padding=side // 2, bias=bias is not None))
            elif weight.ndim == 2:
                layers.append(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None))
            else:
                layers.append(nn.BatchNorm2d(len(weight)))
        return layers

    def features(self, image: torch.Tensor) -> torch.Tensor:
        return self.body(image)

    def project(self, feature: torch.Tensor) -> torch.Tensor:
        return self.fc(feature)


def encoder_state(golden, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a recorded file below `prefix`."""
    return {name.removeprefix(prefix): torch.from_numpy(golden[name]) for name in golden if name.startswith(prefix)}


def check(path: Path) -> None:
    """Reproduce one file; AssertionError says what differs, at which step and by how much."""
    golden = dict(np.load(path, allow_pickle=False))
    compare(golden, on_ranks(int(golden["world"]), run_rank, golden))


def compare(golden: dict[str, np.ndarray], ours: list[dict[str, np.ndarray]]) -> None:
    """Every recorded quantity against that of every rank."""
    for rank, mine in enumerate(ours):
        for step in range(len(golden["loss"])):
            where = f"rank {rank}, step {step}"
            close(mine["logits"][step], golden["logits"][step, rank], f"logits, {where}")
            close(mine["loss"][step], golden["loss"][step, rank], f"loss, {where}")
            close(mine["queue"][step], golden["queue"][step], f"queue, {where}")
            assert mine["ptr"][step] == golden["ptr"][step], f"queue pointer, {where}"
        for name in golden:
            if name.startswith(("final/", "momentum/")):
                close(mine[name], golden[name], f"{name}, rank {rank}")
            elif name.startswith("rank_running/"):
                close(mine[name], golden[name][rank], f"{name}, rank {rank}")


def close(ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
    """Within the tolerance of the recorded files."""
    np.testing.assert_allclose(ours, theirs, **TOLERANCE, err_msg=what)


def run_rank(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Train as recorded, as one of the ranks, and return what the file recorded."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from fss.data.batch import ViewBatch
    from fss.distributed.process_group import ProcessGroupCollectives
    from fss.methods.prior.config import PriorConfig
    from fss.methods.prior.method import PriorExtractor
    from fss.nn import contrast

    dist.init_process_group("gloo")
    collectives = ProcessGroupCollectives()
    n, rank = int(golden["batch_per_rank"]), collectives.rank
    config = PriorConfig(
        dim=int(golden["dim"]),
        queue=int(golden["K"]),
        temperature=float(golden["T"]),
        momentum=float(golden["m"]),
        local="none",
        bn_buffers="rank0",
    )
    method = PriorExtractor(
        config,
        encoder=lambda: RecordedEncoder(encoder_state(golden, "init/encoder_q.")),
        permute=lambda step, micro, rows: golden["perm"][step],
    )
    queue, slow = method.non_trainable["global_queue"], method.non_trainable["encoder"]
    slow.load_state_dict(encoder_state(golden, "init/encoder_k."))
    queue.restore(torch.from_numpy(golden["init/queue"].T.copy()), int(golden["init/queue_ptr"].item()))
    # The recorded step begins with a momentum update, ours ends with one.
    contrast.momentum_update(slow.parameters(), method.trainable.parameters(), config.momentum)

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.trainable = method.trainable

        def forward(self, batch: ViewBatch, step: int):
            return method.loss(batch, StepContext(collectives, step=step))

    forward = DistributedDataParallel(Step(), broadcast_buffers=False)
    optimizer = torch.optim.SGD(
        method.trainable.parameters(),
        lr=float(golden["lr"]),
        momentum=float(golden["sgd_momentum"]),
        weight_decay=float(golden["weight_decay"]),
    )

    logits = []
    shipped = contrast.logits

    def spy(*arguments):
        positive, negative = shipped(*arguments)
        logits.append(torch.cat([positive[:, None], negative], dim=1).detach().numpy())
        return positive, negative

    contrast.logits = spy
    losses, queues, pointers, record = [], [], [], {}
    rows = slice(rank * n, (rank + 1) * n)
    last = len(golden["loss"]) - 1
    for step in range(last + 1):
        batch = ViewBatch(
            query=torch.from_numpy(golden["im_q"][step, rows]),
            key=torch.from_numpy(golden["im_k"][step, rows]),
            image=torch.arange(rows.start, rows.stop),
            keys=[str(i) for i in range(n)],
            replaced=[],
        )
        loss, _ = forward(batch, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == last:  # the recorded run ends before the momentum update that would open the next step
            record |= snapshot("final/encoder_k.", dict(slow.named_parameters()))
            for side, encoder in (("q", method.trainable["encoder"]), ("k", slow)):
                record |= snapshot(f"rank_running/encoder_{side}.", running(encoder))
        method.after_step(StepContext(collectives))
        losses.append(loss.item())
        queues.append(queue.keys.T.numpy().copy())
        pointers.append(queue.pointer)

    query = method.trainable["encoder"]
    record |= snapshot("final/encoder_q.", query.state_dict())
    record |= snapshot("final/encoder_k.", dict(slow.named_buffers()))
    record |= snapshot(
        "momentum/encoder_q.",
        {name: optimizer.state[parameter]["momentum_buffer"] for name, parameter in query.named_parameters()},
    )
    record |= {"final/queue": queues[-1], "final/queue_ptr": np.array([queue.pointer])}
    dist.destroy_process_group()
    return {"logits": logits, "loss": losses, "queue": queues, "ptr": pointers, **record}


def snapshot(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copies of tensors, by prefixed name."""
    return {prefix + name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def running(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """The running statistics of an encoder."""
    return {name: buffer for name, buffer in encoder.named_buffers() if "running_" in name}
