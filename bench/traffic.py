"""The traffic between ranks in a training step, recorded from the shipped methods.

A method is given a `CallLog` as its collectives, which answers every call with a tensor of the right shape and records
it. The prior extractor runs on meta tensors, which have shapes and no contents. The traffic of methods that are trained
on episodes depends on neither image size nor batch: they run on one small episode. The training loop adds gradients and
control words. The input of a rank to a collective does not depend on the number of ranks.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fss.data.batch import EpisodeBatch, ViewBatch, ViewSpec
from fss.methods.base import Method, StepContext
from fss.methods.msanet.config import BAMConfig, EnsembleConfig, MSANetConfig
from fss.methods.msanet.method import BAM, MSANet
from fss.methods.mshnet import MSHNet, MSHNetConfig
from fss.methods.prior.config import PriorConfig
from fss.methods.prior.method import PriorExtractor
from fss.methods.qgnet.config import QGNetConfig
from fss.methods.qgnet.method import QGNet
from fss.nn.exports import ExportHeader
from fss.nn.pspnet import PSPNet

Kind = Literal["all_reduce", "all_gather", "all_to_all"]
CONTROL = "control words"
SHUFFLED = "shuffled images"
RETURNED = "own keys"
KEYS = "keys for the queue"
GRADIENTS = "gradients"
UNUSED = "unused parameters"
ANY_WORLD = 4  # of more than one rank
REGION_STRIDE = ViewSpec(local="region").stride


@dataclass(frozen=True)
class Call:
    """One collective, as rank 0 sees it."""

    what: str
    """Its name in the tables."""
    kind: Kind
    bytes: int
    """Input of the rank."""
    rows: int = 0
    """Of an all-to-all: it has messages for at most so many ranks."""

    def received(self, world_size: int) -> float:
        """Bytes that a rank receives: rings for the first two kinds, 2 (n - 1) / n and n - 1 times what it hands in;
        (n - 1) / n of it, on average over permutations, for an all-to-all."""
        share = {"all_reduce": 2 / world_size, "all_gather": 1, "all_to_all": 1 / world_size}
        return self.bytes * (world_size - 1) * share[self.kind]


class CallLog:
    """`fss.collectives.Collectives` of rank 0 of `world_size`, alone on this process: right shapes, wrong contents."""

    rank = 0

    def __init__(self, world_size: int) -> None:
        self.world_size = self.ranks_per_node = world_size
        self.calls: list[Call] = []

    def all_gather(self, x: Tensor) -> Tensor:
        self.calls.append(Call(KEYS, "all_gather", x.nbytes))
        return x.detach().repeat(self.world_size, *[1] * (x.dim() - 1))

    def start_all_gather(self, x: Tensor) -> Callable[[], Tensor]:
        return partial(self.all_gather, x)

    def all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        what = SHUFFLED if x.dtype == torch.uint8 else RETURNED
        self.calls.append(Call(what, "all_to_all", x.nbytes, rows=len(x)))
        return x.new_empty((sum(receive), *x.shape[1:]))

    def start_all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Callable[[], Tensor]:
        return partial(self.all_to_all, x, send, receive)

    def all_reduce(self, x: Tensor) -> Tensor:
        self.calls.append(Call("sums in the loss", "all_reduce", x.nbytes))
        return x.detach() * self.world_size

    def all_gather_coalesced(self, tensors: list[Tensor]) -> list[Tensor]:
        self.calls.append(Call("sums in the loss", "all_gather", sum(x.nbytes for x in tensors)))
        ranks = [x.detach().expand(self.world_size, *x.shape) for x in tensors]
        return [x.flatten(0, 1) for x in torch._foreach_mul(ranks, 1)]

    def all_reduce_coalesced(self, tensors: list[Tensor]) -> list[Tensor]:
        self.calls.append(Call("sums in the loss", "all_reduce", sum(x.nbytes for x in tensors)))
        return list(torch._foreach_mul([x.detach() for x in tensors], self.world_size))

    def mean_(self, tensors: list[Tensor]) -> None:
        if tensors:
            self.calls.append(Call("running statistics", "all_reduce", 4 * sum(x.numel() for x in tensors)))

    broadcast_ = mean_  # in as many bytes or fewer


def engine_calls(method: Method) -> list[Call]:
    """The collectives of DDP and of the loop in a step of any method: `DistributedContext.wrap`, `Trainer._launch`."""
    parameters = list(method.trainable.parameters())
    return [
        Call(GRADIENTS, "all_reduce", sum(4 * p.numel() for p in parameters)),
        Call(UNUSED, "all_reduce", 4 * len(parameters)),  # an int32 for each: was it used on any rank?
        Call(CONTROL, "all_reduce", 12),
    ]


def calls_of(method: Method, batch: ViewBatch | EpisodeBatch, world_size: int) -> list[Call]:
    """Every collective of one optimizer step of `method` on a rank's `batch`, the engine's among them."""
    call_log = CallLog(world_size)
    loss, _ = method.loss(batch, StepContext(call_log))
    loss.backward()
    method.after_step(StepContext(call_log))
    return call_log.calls + engine_calls(method)


def views(images: int, config: PriorConfig, device: str = "cpu") -> ViewBatch:
    """Noise of the shapes that a prior extractor reads: two views of each image, and two patches or its regions."""

    def pair(side: int) -> Tensor:
        return torch.randint(0, 256, (2, images, 3, side, side), dtype=torch.uint8, device=device)

    view, local = pair(config.view_size), {}
    if config.local == "patch":
        local["patch_query"], local["patch_key"] = pair(config.patch_size)
    elif config.local == "region":
        side = math.ceil(config.view_size / REGION_STRIDE)
        shares = torch.rand(2, images, config.regions, side * side, device=device).softmax(-1)
        local["region_query"], local["region_key"] = shares.unflatten(-1, (side, side))
        local["region_weight"] = torch.ones(images, config.regions, device=device)
    return ViewBatch(
        query=view[0],
        key=view[1],
        image=torch.arange(images, device=device),
        keys=["made up"] * images,
        replaced=[],
        **local,
    )


def episodes(batch: int, size: int) -> EpisodeBatch:
    """Noise, with an object on a quarter of every image; one shot."""
    image = torch.randint(0, 256, (batch, 2, 3, size, size), dtype=torch.uint8)
    mask = torch.zeros(batch, 2, size, size, dtype=torch.uint8)
    mask[..., size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return EpisodeBatch(
        query=image[:, 0],
        query_mask=mask[:, 0],
        support=image[:, 1:],
        support_mask=mask[:, 1:],
        class_id=torch.ones(batch, dtype=torch.int64),
        keys=["made up"] * batch,
        replaced=[],
    )


def build_qgnet(**config: object) -> QGNet:
    given = QGNetConfig(**config)
    prior = ExportHeader(method="prior", backbone=given.backbone)
    return QGNet(given, header=ExportHeader(prior=prior))


def build_msanet(**config: object) -> MSANet:
    return over_base_learner(MSANet, MSANetConfig(**config))


def build_bam(**config: object) -> MSANet:
    return over_base_learner(BAM, BAMConfig(**config))


def over_base_learner(meta_learner: type[MSANet], given: EnsembleConfig) -> MSANet:
    classes = {str(class_id): "made up" for class_id in range(1, 61)}
    base = ExportHeader(backbone=given.backbone, stem=given.stem, classes=classes)
    method = meta_learner(given, header=ExportHeader(base=base))
    learner = PSPNet(given.backbone, given.stem, len(classes))  # with a header, the method's own is uninitialized
    method.non_trainable["backbone"].load_state_dict(learner.backbone.state_dict())
    method.non_trainable["base"].load_state_dict(learner.head.state_dict())
    return method


def build_mshnet(**config: object) -> MSHNet:
    return MSHNet(MSHNetConfig(**config))


META: dict[str, Callable[..., Method]] = {"qgnet": build_qgnet, "msanet": build_msanet, "mshnet": build_mshnet}
"""Methods that learn from episodes, with random weights; without options the papers' networks."""
SHUFFLES = ("shuffle", "published", "sync", "local")
"""Ways to give keys other batch statistics than queries. "published" gathers float32 images; the others are `bn`."""


class Pretraining:
    """The calls of pretraining steps, by the images of a rank.

    shuffle: one of SHUFFLES; config: what else differs from the paper's recipe.
    """

    def __init__(self, shuffle: str = "shuffle", **config: object) -> None:
        self._published = shuffle == "published"
        self.config = PriorConfig(bn="shuffle" if self._published else shuffle, **config)
        self._method = PriorExtractor(self.config)
        self._method.trainable.to("meta")
        self._method.non_trainable.to("meta")

    def calls(self, images: int) -> list[Call]:
        calls = calls_of(self._method, views(images, self.config, "meta"), ANY_WORLD)
        return [as_published(call) for call in calls] if self._published else calls


def as_published(call: Call) -> Call:
    """An exchange of uint8 rows the way MoCo's authors do it: every rank gathers the float32 images of all."""
    if call.what != SHUFFLED:
        return call
    return replace(call, kind="all_gather", bytes=4 * call.bytes, rows=0)


def meta_training(name: str) -> list[Call]:
    """The calls of a meta-training step."""
    return calls_of(META[name](), episodes(1, 33), ANY_WORLD)


def received(calls: list[Call], world_size: int) -> dict[str, float]:
    """Bytes that a rank receives in a step, by name, the largest first."""
    total: Counter[str] = Counter()
    for call in calls:
        total[call.what] += call.received(world_size)
    return dict(total.most_common())
