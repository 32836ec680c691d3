"""QGNet's prior extractor: momentum contrast of whole images and of local patches (QGNet, section IV-A).

Global contrast is MoCo v2 on two views of an image (Eq. 1). Local contrast is the same on superpixel patches, with a
queue of its own (Eq. 6); the loss is their sum (Eq. 7). Few-shot segmentation uses the momentum encoder.

An official MoCo step moves the momentum encoder before it computes the keys, and writes the queue before the backward
pass. Here both happen after the optimizer step. The sequence of values is the same: the first official update changes
nothing, because both encoders start equal. Nothing that the backward pass needs is overwritten, and with gradient
accumulation there is one update and one enqueue an optimizer step.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fss.collectives import Collectives, SingleProcess
from fss.data.batch import ViewBatch, ViewSpec
from fss.errors import ConfigError
from fss.methods.base import Report, StepContext, ViewMethod
from fss.methods.prior.config import PAPER_QUEUE, PriorConfig
from fss.methods.prior.pending_keys import PendingKeys
from fss.methods.prior.queue_monitor import QueueMonitor
from fss.methods.prior.shuffle import Permute, SeededPermutation, Shuffle, permute_ranks
from fss.methods.prior.tower import Tower
from fss.nn.contrast import Queue, info_nce, momentum_update
from fss.nn.exports import ExportHeader
from fss.nn.norm import Normalize, has_batch_norm, running_statistics, synchronise
from fss.nn.resnet import ENCODERS, HEAD, Encoder
from fss.nn.weights import load_start


class PriorExtractor(ViewMethod[PriorConfig]):
    """See the module. `trainable` has the query encoder, `non_trainable` the momentum encoder, float32, and queues."""

    Config = PriorConfig

    def __init__(
        self,
        config: PriorConfig,
        *,
        encoder: Callable[[], Encoder] | None = None,
        permute: Permute | None = None,
    ) -> None:
        """Build both encoders, with equal random weights, and the queues.

        encoder: builds the network instead of `config.backbone`; permute: replaces the seeded shuffles.
        """
        self.config = config
        self._permute = permute or SeededPermutation(config.seed)
        self._collectives: Collectives = SingleProcess()
        self._pending: list[PendingKeys] = []  # of this optimizer step

        network: Encoder = encoder() if encoder else ENCODERS[config.backbone](config.dim)
        if config.bn == "sync":
            synchronise(network, lambda: self._collectives)
        if config.channels_last:
            network.to(memory_format=torch.channels_last)
        separate = config.local_head == "separate" and config.local != "none"
        self._query = Tower(network, copy.deepcopy(network.fc) if separate else None)
        self._momentum = copy.deepcopy(self._query)
        self._normalize = Normalize()
        self.trainable = self._query.as_modules()
        self.non_trainable = self._momentum.as_modules().requires_grad_(False)
        self.non_trainable["normalize"] = self._normalize
        tagged = config.mask_same_image
        self._queues: dict[str, Queue] = {}
        self._monitors: list[QueueMonitor] = []
        if config.global_loss:
            self._queues["global"] = Queue(config.queue, config.dim, seed=config.seed, tagged=tagged)
            self._monitors.append(QueueMonitor("global", self._queues["global"], option="queue", keys_per_image=1))
        if config.local != "none":
            per_image = config.regions if config.local == "region" and config.local_enqueue == "all" else 1
            self._queues["local"] = Queue(config.local_queue, config.dim, seed=config.seed + 1, tagged=tagged)
            self._monitors.append(
                QueueMonitor("local", self._queues["local"], option="local_queue", keys_per_image=per_image)
            )
        self.non_trainable.update({f"{name}_queue": queue for name, queue in self._queues.items()})
        self._has_batch_norm = has_batch_norm(network)

    @property
    def batch_spec(self) -> ViewSpec:
        c = self.config
        return ViewSpec(
            size=c.view_size, local=c.local, superpixels=c.superpixels, patch_size=c.patch_size, regions=c.regions
        )

    def loss(self, batch: ViewBatch, context: StepContext) -> tuple[Tensor, Report]:
        """Compute L_local + L_global of one micro-batch (Eq. 7), in nats, each the mean over images.

        Regions count within their image by `region_weight`. The keys enter the queues in `after_step`.
        Raises ConfigError if the batch is too small for batch statistics.
        """
        collectives, step = context.collectives, context.step
        self._collectives = collectives
        n = len(batch.query)
        self._check_batch(n, collectives)
        draw = partial(self._permute, step, len(self._pending))
        split = 1
        if collectives.world_size == 1 and self.config.bn == "shuffle":
            split = max(1, min(self.config.bn_split, n // 2))  # groups of at least 2

        view = self._view(batch.key, batch.patch_key, batch.region_key)
        exchanged, shuffle = {}, None
        if self.config.bn == "shuffle":  # while the images are exchanged, the queries are computed
            permutation = permute_ranks(draw, n, collectives, among=self.config.shuffle_among)
            shuffle = Shuffle(permutation, collectives, batch.key.device)
            exchanged = {name: shuffle.scatter(x) for name, x in view.items()}
        queries = self._embed(self._query, self._view(batch.query, batch.patch_query, batch.region_query), split)
        with torch.no_grad():
            view |= {name: finish() for name, finish in exchanged.items()}
            keys = self._embed(self._momentum, view, split)  # [n, R, D] each
            regions = {name: key.shape[1] for name, key in keys.items()}
            computed = torch.cat(list(keys.values()), 1)
            returned = shuffle.give_back(computed) if shuffle else lambda: computed
            # The queue's keys travel until `after_step`.
            images = collectives.start_all_gather(batch.image) if self.config.mask_same_image else None
            gathered = collectives.start_all_gather(computed)
            choose = draw if self.config.local_enqueue == "one" else None
            self._pending.append(PendingKeys(gathered, images, regions, shuffle, choose))
            keys = dict(zip(regions, returned().split(list(regions.values()), 1), strict=True))

        losses: list[Tensor] = []
        report: Report = {}
        for name, query in queries.items():
            key = keys[name]
            weight = batch.region_weight if name == "local" and self.config.local == "region" else None
            loss, measures = self._contrast(name, query, key, weight, batch.image, context.logged)
            losses.append(loss)
            report |= measures
        return sum(losses[1:], losses[0]), report

    @torch.no_grad()
    def after_step(self, context: StepContext) -> None:
        for name, fast in self.trainable.items():
            momentum_update(self.non_trainable[name].parameters(), fast.parameters(), self.config.momentum)
        if self.config.bn != "sync":  # with sync they are equal already
            statistics = running_statistics(self.trainable) + running_statistics(self.non_trainable)
            if self.config.bn_buffers == "mean":
                context.collectives.mean_(statistics)
            else:
                context.collectives.broadcast_(statistics)
        for pending in self._pending:
            for name, (rows, images) in pending.for_queues().items():
                self._queues[name].push(rows, images)
        self._pending.clear()

    def _check_batch(self, n: int, collectives: Collectives) -> None:
        """Raise ConfigError if n images a rank are too few for batch statistics."""
        over = n * collectives.world_size if self.config.bn == "sync" else n
        if self._has_batch_norm and over < 2:
            raise ConfigError(
                f"a batch of {n} image on each of {collectives.world_size} ranks gives batch normalisation nothing to "
                "take statistics over: use at least 2 images a rank"
            )

    def _view(self, image: Tensor, patch: Tensor | None, regions: Tensor | None) -> dict[str, Tensor]:
        """Select from one side of the batch what its encoder needs."""
        view = {}
        if self.config.global_loss or self.config.local == "region":
            view["image"] = image  # [n, 3, S, S]
        if self.config.local == "region":
            assert regions is not None  # `batch_spec` asks for them
            view["regions"] = regions  # [n, R, h, w]
        if self.config.local == "patch":
            assert patch is not None
            view["patch"] = patch  # [n, 3, P, P]
        return view

    def _embed(self, tower: Tower, view: dict[str, Tensor], split: int) -> dict[str, Tensor]:
        """Compute unit embeddings [n, R, D] for each contrast, float32, with batch statistics of `split` groups."""
        return tower.embed(view, self._prepare, split, whole_images=self.config.global_loss)

    def _prepare(self, image: Tensor) -> Tensor:
        """Normalize uint8 images [B, 3, H, W], in the memory format of the encoders."""
        if self.config.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return self._normalize(image)

    def _contrast(
        self, name: str, query: Tensor, key: Tensor, weight: Tensor | None, image: Tensor, logged: bool
    ) -> tuple[Tensor, Report]:
        """Compute InfoNCE of [n, R, D] against the queue, averaged over R by weight and over images, and its report.

        logged: whether the report has more than the loss.
        """
        n, r, dim = query.shape
        queue = self._queues[name]
        exclude = None
        if queue.images is not None:
            exclude = image.repeat_interleave(r)[:, None] == queue.images  # [n R, K]
        result = info_nce(query.flatten(0, 1), key.flatten(0, 1), queue.keys, self.config.temperature, exclude)
        losses = result.loss.view(n, r)
        loss = losses.mean() if weight is None else ((losses * weight).sum(1) / weight.sum(1)).mean()
        report = {f"loss/{name}": loss.detach()}
        if not logged:
            return loss, report
        return loss, report | {
            f"top1/{name}": result.hit.mean(),
            f"positive/{name}": result.positive.mean(),
            f"negative/{name}": result.negative.mean(),
            # 1: spread over all directions, 0: the same vector for every image
            f"spread/{name}": query.detach().flatten(0, 1).std(0, correction=0).mean() * math.sqrt(dim),
            f"fill/{name}": queue.fill(),
        }

    def startup_messages(self, images: int, batch: int) -> list[str]:
        messages = [text for monitor in self._monitors for text in monitor.startup_messages(images, batch)]
        if self.config.bn == "local":
            messages.append("bn is local: queries and keys share batch statistics, which can give pairs away")
        return messages

    def warnings(self, step: int, report: dict[str, float]) -> list[str]:
        return [text for monitor in self._monitors for text in monitor.warnings(step, report)]

    def distributions(self) -> dict[str, Tensor]:
        return {name: values for monitor in self._monitors for name, values in monitor.distributions().items()}

    def chance_levels(self) -> dict[str, float]:
        levels = {name: level for monitor in self._monitors for name, level in monitor.chance_levels().items()}
        return {"loss": sum(level for name, level in levels.items() if name.startswith("loss/")), **levels}

    def caveats(self, images_seen: int) -> list[str]:
        short = self.config.deviations_from_paper(images_seen)
        if not short:
            return []
        return [
            f"Far from the paper's recipe (1000 epochs of PASCAL VOC or 200 of COCO, K = M = {PAPER_QUEUE}): "
            + "; ".join(short)
            + ". Its figures show that training works here, not what the method can reach."
        ]

    def compile(self) -> None:
        for encoder in (self._query.encoder, self._momentum.encoder):
            compiled = torch.compile(encoder.features)
            encoder.features = compiled  # type: ignore[method-assign]  # of this object only

    @torch.no_grad()
    def dense(self, image: Tensor) -> Tensor:
        """Compute the momentum encoder's last map of uint8 images, [B, 3, H, W] -> [B, C, H/32, W/32], float32."""
        encoder = self._momentum.encoder
        training = encoder.training
        encoder.eval()
        try:
            return encoder.features(self._prepare(image)).float()
        finally:
            encoder.train(training)

    def embed(self, image: Tensor) -> Tensor:
        """Compute the normalized mean of `dense`'s map, uint8 [B, 3, H, W] -> [B, C], without the projection head."""
        return F.normalize(self.dense(image).mean((2, 3)), dim=1)

    def export(self) -> tuple[dict[str, Tensor], ExportHeader]:
        """Return the momentum encoder's trunk under torchvision's names, and the header."""
        state = self._momentum.encoder.state_dict()
        trunk = {name: t.detach().cpu().contiguous() for name, t in state.items() if not name.startswith(HEAD)}
        return trunk, ExportHeader(
            format="pt",
            method="prior",
            backbone=self.config.backbone,
            encoder="momentum",
            recipe=asdict(self.config),
        )

    def init_from(self, path: Path) -> list[str]:
        """Start from an official MoCo checkpoint, a torchvision ResNet's state dict, or an export of this program.

        Raises WeightsError if the file is damaged or of another backbone.
        """
        start = load_start(path, self.config.backbone)
        key = start.key or start.query
        messages = [f"both encoders start from {path}, an {start.layout}"]
        own = {name: t.shape for name, t in self._momentum.encoder.fc.state_dict().items()}
        head = {name.removeprefix(HEAD): t.shape for name, t in start.query.items() if name.startswith(HEAD)}
        if head != own:
            messages.append(
                f"its projection head is {'of another shape' if head else 'not there'}: the head starts anew"
            )
        for tower, state in ((self._query, start.query), (self._momentum, key)):
            if head != own:
                state = {name: t for name, t in state.items() if not name.startswith(HEAD)}
            tower.encoder.load_state_dict(tower.encoder.state_dict() | state)
            if tower.local_head is not None:
                tower.local_head.load_state_dict(tower.encoder.fc.state_dict())
        if start.queue is not None and "global" in self._queues:
            queue = self._queues["global"]
            if head == own and start.queue.shape == queue.keys.shape:
                queue.restore(start.queue, len(queue) + start.pointer)  # published queues are full
                messages.append(f"its queue of {len(queue)} keys is taken over")
            else:
                messages.append(f"its queue of {len(start.queue)} keys does not fit: the queue starts anew")
        return messages
