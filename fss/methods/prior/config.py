"""The options of QGNet's prior extractor, and their distance from the paper's."""

from dataclasses import dataclass
from typing import Literal

from fss.data.batch import LocalReading
from fss.errors import ConfigError, at_least
from fss.methods.base import MethodConfig

PAPER_IMAGES = 10_582 * 1000  # images that the paper's extractor saw on PASCAL VOC; on COCO 82,783 * 200
PAPER_QUEUE = 65536


@dataclass(frozen=True, kw_only=True)
class PriorConfig(MethodConfig):
    """Pretraining of the prior extractor; the defaults are the paper's job with MoCo v2's constants."""

    name: Literal["prior"] = "prior"
    """The method."""
    backbone: Literal["resnet18", "resnet50", "resnet101"] = "resnet50"
    """Trunk of both encoders, in torchvision's layout."""
    dim: int = 128
    """Length of a key."""
    queue: int = 65536
    """K, the negatives of a whole image."""
    local_queue: int = 65536
    """M, the negatives of a patch or region."""
    temperature: float = 0.2
    """Divisor of the cosine similarities (tau)."""
    momentum: float = 0.999
    """Share of its old weights that the momentum encoder keeps at an optimizer step."""
    global_loss: bool = True
    """Contrast whole images (Table VI)."""
    local: LocalReading = "patch"
    """Contrast patches (Table VI). 'patch': crops of a superpixel are encoded, as in the paper's text. 'region': the
    same superpixels are pooled from the maps of both views, which saves the extra passes. 'none': no local contrast."""
    local_head: Literal["shared", "separate"] = "shared"
    """Projection head of local contrast: 'shared' with global contrast, or 'separate'."""
    local_enqueue: Literal["one", "all"] = "one"
    """Regions of an image that enter the local queue ('region'); with 'all' it is replaced `regions` times as fast."""
    superpixels: Literal["slic", "felzenszwalb"] = "slic"
    """Segmentation that patches and regions are taken from (Table V)."""
    view_size: int = 224
    """Side of both views, pixels."""
    patch_size: int = 96
    """Side of both patch views, pixels ('patch'); 224 doubles the cost of a step."""
    regions: int = 16
    """Regions drawn per image ('region')."""
    bn: Literal["shuffle", "sync", "local"] = "shuffle"
    """Batch statistics of keys. 'shuffle': over other groups of images than the queries', as in MoCo. 'sync': over the
    batch of all ranks, for queries, too. 'local': over this rank's images, by which pairs can be recognized."""
    shuffle_among: Literal["all", "node"] = "all"
    """The ranks that exchange images for 'shuffle': 'all', as in MoCo, or those of a 'node', which has faster links."""
    bn_split: int = 2
    """Groups of a batch on a single process for 'shuffle', which has no effect within one group."""
    bn_buffers: Literal["mean", "rank0"] = "mean"
    """Running statistics of all ranks after a step: their 'mean', or those of 'rank0', as in MoCo."""
    mask_same_image: bool = False
    """Leave earlier keys of an image out of its negatives; MoCo counts them."""
    channels_last: bool = True
    """Store images and maps with channels innermost: faster on CPUs and on GPUs with tensor cores."""
    seed: int = 0
    """Seed of the queues' first vectors and of the shuffles; the weights follow the seed of the run."""

    def __post_init__(self) -> None:
        if not self.global_loss and self.local == "none":
            raise ConfigError(
                "method.global_loss is false and method.local is none, which leaves no loss: switch one of them on"
            )
        if not self.global_loss and self.local_head == "separate":
            raise ConfigError(
                "method.local_head is separate but method.global_loss is false: with one loss, set it to shared"
            )
        at_least("method", self, dim=1, queue=1, local_queue=1, view_size=1, patch_size=1)
        at_least("method", self, regions=1, bn_split=1, seed=0)
        if not self.temperature > 0:
            raise ConfigError(f"method.temperature is {self.temperature}: give a number above 0, such as 0.2")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"method.momentum is {self.momentum}: give a number from 0 to below 1, such as 0.999")

    def deviations_from_paper(self, images_seen: int) -> list[str]:
        """List by how much a run over `images_seen` images is smaller than the paper's (sections IV-A, V-A)."""
        short = []
        if images_seen < 0.9 * PAPER_IMAGES:
            short.append(f"{images_seen:,} images seen ({images_seen / PAPER_IMAGES:.2%} of {PAPER_IMAGES:,} on VOC)")
        for symbol, size, used in (("K", self.queue, self.global_loss), ("M", self.local_queue, self.local != "none")):
            if used and size < PAPER_QUEUE:
                short.append(f"{symbol} = {size} for {PAPER_QUEUE}")
        if self.backbone == "resnet18":
            short.append("a ResNet-18 for a ResNet-50 or -101")
        return short
