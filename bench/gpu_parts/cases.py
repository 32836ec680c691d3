"""The training steps that are measured: a method with random weights, and batches of noise for it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from traffic import META, build_bam, episodes, views

from fss.collectives import Collectives
from fss.data.batch import Batch, LabelBatch
from fss.methods import METHODS
from fss.methods.base import Method
from fss.methods.base_learner import BaseLearner, BaseLearnerConfig
from fss.methods.prior.config import PriorConfig
from fss.methods.prior.method import PriorExtractor

CLASSES = dict.fromkeys(range(1, 61), "made up")


@dataclass(frozen=True)
class Case:
    """A method at the papers' sizes, or small."""

    name: str
    method: str
    """Its name in METHODS."""
    build: Callable[[Collectives], Method]
    batch: Callable[[int], Batch]
    """Number of images or episodes -> a batch."""
    batches: tuple[int, ...]
    """The numbers to measure, small to large: two, or one if small."""

    @property
    def compiles(self) -> bool:
        """Whether run.compile has an effect."""
        return METHODS[self.method].compile is not Method.compile


def prior_case(local: str, small: bool) -> Case:
    """Pretraining as on a rank of a larger job: batch statistics over all images of the rank."""
    tiny = {"backbone": "resnet18", "queue": 256, "local_queue": 256, "view_size": 64, "patch_size": 32, "regions": 4}
    config = PriorConfig(local=local, bn_split=1, **tiny if small else {})
    return Case(
        name=f"prior, {local}",
        method="prior",
        build=lambda collectives: PriorExtractor(config),
        batch=lambda images: views(images, config),
        batches=(2,) if small else (32, 128),
    )


def base_case(small: bool) -> Case:
    """The base learner of 60 classes."""
    config = BaseLearnerConfig(**{"size": 65, "backbone": "resnet18"} if small else {})

    def build(collectives: Collectives) -> Method:
        method = BaseLearner(config)
        method.set_classes(CLASSES, collectives)
        return method

    def batch(images: int) -> Batch:
        given = episodes(images, config.size)
        return LabelBatch(image=given.query, labels=given.query_mask, keys=given.keys, replaced=[])

    return Case("base learner", "base", build, batch, (2,) if small else (4, 12))


def episode_case(name: str, small: bool) -> Case:
    """A meta learner, one shot."""
    config = {"size": 65, "backbone": "resnet18"} if small else {"size": 473}
    build = partial((META | {"bam": build_bam})[name], **config)
    shown = METHODS[name].__name__
    return Case(shown, name, lambda _: build(), partial(episodes, size=config["size"]), (1,) if small else (4, 16))


def cases(small: bool) -> list[Case]:
    """Every method that is trained."""
    priors = [prior_case(local, small) for local in ("patch", "region")]
    return [*priors, base_case(small), *(episode_case(name, small) for name in ("qgnet", "msanet", "bam", "mshnet"))]
