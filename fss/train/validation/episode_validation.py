"""Validation during training on episodes: episodes of held-out classes, by which the best weights are chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fss.data.episodes import EpisodeConfig, Policy, evaluation_episodes
from fss.data.folds import Fold
from fss.distributed.context import DistributedContext
from fss.errors import ConfigError, at_least
from fss.evaluate.examples import EpisodeExample, predict_example
from fss.evaluate.measure import measure, predictor_for
from fss.evaluate.metrics import scores, total
from fss.evaluate.predictor import EpisodePredictor
from fss.evaluate.scoring import Scoring
from fss.methods.base import EpisodeMethod
from shards.format import Manifest, ShardError
from shards.read import ShardSet

EXAMPLES = 4  # episodes drawn at a validation


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Episodes by which the best weights of a run are chosen."""

    split: Literal["base", "novel", "none"] = "base"
    """base: on base classes that training leaves out. novel: on the test classes of the fold, as the reference
    implementations do, which tunes the weights to the test; report and weights record it. none: no validation, only
    the last weights are kept."""
    shards: str | None = None
    """Packed set from which the episodes are drawn; null: the training shards."""
    every: int | None = None
    """Optimizer steps between validations; null: a twentieth of the run."""
    episodes: int = 1000
    """Episodes of a validation, the same ones every time."""
    classes: int | None = None
    """Base classes that training leaves out ('base'); null: a fifth of them."""
    seed: int = 0
    """Seed of the episodes."""

    def __post_init__(self) -> None:
        at_least("validate", self, every=1, episodes=1, classes=1, seed=0)


class HeldOutConfig(Protocol):
    """The options that decide which classes are held out; both kinds of `validate` have them."""

    @property
    def split(self) -> Literal["base", "novel", "none"]:
        """As in `ValidateConfig`."""
        ...

    @property
    def classes(self) -> int | None:
        """As in `ValidateConfig`."""
        ...


def held_out_classes(config: HeldOutConfig, fold: Fold) -> tuple[int, ...]:
    """The ids of the base classes held out for validation, evenly spread over the sorted ids; none unless on 'base'.

    Raises ConfigError if no class would be left to train on.
    """
    if config.split != "base":
        return ()
    base = sorted(fold.base)
    count = config.classes or max(1, len(base) // 5)
    if count >= len(base):
        raise ConfigError(
            f"validate.classes is {count} but fold {fold.fold} has {len(base)} base classes: leave some to learn from, "
            "or set validate.split to none"
        )
    return tuple(base[(2 * i + 1) * len(base) // (2 * count)] for i in range(count))  # the middle of each part


class EpisodeValidation:
    """The validation episodes of a run, and the score of a method on them.

    Raises ShardError if the shards lack a class or images of it.
    """

    def __init__(
        self,
        config: ValidateConfig,
        fold: Fold,
        training: ShardSet,
        episodes: EpisodeConfig,
        size: int,
        context: DistributedContext,
        cache: str | None = None,
    ) -> None:
        self.config = config
        self.classes = held_out_classes(config, fold) or fold.novel
        self.shards = ShardSet(config.shards, cache=cache) if config.shards else training
        check_names(self.classes, training.manifest, self.shards)
        policy = Policy(draw="round_robin", min_area=episodes.min_area, labels=episodes.labels)
        self.episodes = evaluation_episodes(
            self.shards.manifest, self.classes, policy, episodes.shots, config.episodes, [config.seed]
        )
        self.scoring = Scoring(size=size, resize="exact", resolution="original", labels=episodes.labels)
        self.context = context

    def __call__(self, method: EpisodeMethod) -> dict[str, float]:
        """Score `method`: val/miou, val/fb_iou and val/iou/NAME of each class, fractions, equal on all ranks.

        Collective. Raises ShardError if a sample cannot be read, RunError if logits are not finite.
        """
        predictor: EpisodePredictor = predictor_for(method, self.scoring, self.context)
        results = measure(predictor, self.shards, self.episodes, self.scoring, self.context)
        totals = scores(total(((result.class_id, result.counts) for result in results), self.classes))
        names = self.shards.manifest.classes
        by_class = {f"val/iou/{names[class_id]}": iou for class_id, iou in totals.per_class.items()}
        return {"val/miou": totals.miou, "val/fb_iou": totals.fb_iou, **by_class}

    def examples(self, method: EpisodeMethod) -> list[EpisodeExample]:
        """The first episodes with their predictions, the same at every validation."""
        predictor: EpisodePredictor = predictor_for(method, self.scoring, self.context)
        return [predict_example(predictor, self.shards, episode, self.scoring) for episode in self.episodes[:EXAMPLES]]


def check_names(classes: Sequence[int], training: Manifest, validation: ShardSet) -> None:
    """Raise ShardError unless both sets have the same name for each class id."""
    for class_id in classes:
        here, there = training.classes[class_id], validation.manifest.classes.get(class_id)
        if here != there:
            raise ShardError(
                f"validate.shards {validation.remote or validation.folder} calls class {class_id} {there!r}, the "
                f"training shards call it {here!r}: give shards that were packed from the same data set"
            )
