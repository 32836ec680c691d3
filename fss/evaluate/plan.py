"""The plan of an evaluation: its episodes, their scoring, and a statement of both in words."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from fss.data.episode_lists import read_list
from fss.data.episodes import Episode, evaluation_episodes
from fss.data.folds import Fold, fold_of
from fss.data.protocol import Protocol, protocol_of
from fss.data.transforms import Resize, Resolution
from fss.datasets import SchemeName
from fss.datasets.base import Draw, Labels, ProtocolName
from fss.errors import ConfigError, at_least
from fss.evaluate.scoring import Scoring
from fss.nn.exports import ExportHeader
from shards.format import Manifest

SELECTED_ON = {
    "none": "nothing: those of the last step",
    "base": "their score on base classes held out from training",
    "novel": "their score on the novel classes of the fold: the test",
}
"""`validate.split` of a training -> the description of how its weights were chosen."""


@dataclass(frozen=True, kw_only=True)
class FoldConfig:
    """The novel classes and the shots of an episode; null: as the weights were trained."""

    scheme: SchemeName | None = None
    """Convention of the folds; null without weights: interleaved."""
    fold: int | None = None
    """The fold that is held out, from 0; null without weights: 0."""
    novel: list[str] = field(default_factory=list)
    """Names or ids of the novel classes (scheme 'list')."""
    shots: int | None = None
    """K, the support images of an episode; null without weights: 1."""

    def __post_init__(self) -> None:
        at_least("episodes", self, fold=0, shots=1)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The evaluation of a method. An option that is not null replaces the value of the protocol."""

    protocol: ProtocolName = "default"
    """The rules: episodes, seeds, policy, resize rule and resolution as docs/protocols.md lists them."""
    split: Literal["novel", "base"] = "novel"
    """The classes of the fold that the episodes are of."""
    episode_list: str | None = None
    """A file of episodes (class, query, supports) to evaluate as it is, in place of drawn ones."""
    episodes: int | None = None
    """Episodes of each seed."""
    seeds: list[int] | None = None
    """One run of episodes each; several give a mean and a standard deviation."""
    draw: Draw | None = None
    """How class and query are drawn, see episodes.draw of meta_train.py."""
    repeat_supports: bool | None = None
    """true: an image may be drawn twice among the supports of an episode."""
    min_area: int | None = None
    """Pixels of an image, at original size, that a class must cover to be drawn there."""
    labels: Labels | None = None
    """'own': each class keeps all its pixels. 'flat': later classes cover earlier ones, as in PNG label maps."""
    size: int | None = None
    """Side of the square that the method sees, pixels, of those that it takes; null: its own."""
    resize: Resize | None = None
    """How an image is fitted into that square."""
    resolution: Resolution | None = None
    """Where predictions meet the truth: 'original', or in a square of so many pixels a side."""
    ignore_255: bool | None = None
    """true: pixels of unknown class are not scored; false: they count as background."""
    cache_gib: float = 4
    """Memory of each rank, GiB on its device, for the features of images and supports; 0: no cache."""

    def __post_init__(self) -> None:
        at_least("eval", self, episodes=1, min_area=0, cache_gib=0)
        if isinstance(self.resolution, int) and self.resolution < 1:
            raise ConfigError(f"eval.resolution is {self.resolution}: give 'original' or a side in pixels")
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0):
            raise ConfigError(f"eval.seeds is {self.seeds}: give one seed or more, all different, 0 or above")

    def protocol_for(self, scheme: SchemeName) -> Protocol:
        """The protocol on the data of `scheme`, with the values that the user set."""
        protocol = protocol_of(self.protocol, scheme)
        names = {f.name for f in fields(protocol)} & {f.name for f in fields(self)} - {"seeds"}
        own = {name: value for name in names - {"protocol"} if (value := getattr(self, name)) is not None}
        if self.seeds is not None:
            own["seeds"] = tuple(self.seeds)
        changed = sorted(key for key, value in own.items() if value != getattr(protocol, key))
        note = f"{protocol.note}; changed here: {', '.join(changed)}" if changed else protocol.note
        return replace(protocol, **own, note=note)


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Everything that an evaluation measures."""

    fold: Fold
    split: Literal["novel", "base"]
    classes: tuple[int, ...]
    """The classes that the mean is over."""
    shots: int
    protocol: Protocol
    episodes: list[Episode]
    scoring: Scoring
    source: str | None
    """The file with the list of episodes; None: they were drawn."""

    def statement(self, manifest: Manifest, header: ExportHeader) -> dict[str, str]:
        """Everything that decides the score: label -> description."""
        protocol, fold = self.protocol, self.fold
        seeds = ", ".join(map(str, sorted({episode.seed for episode in self.episodes})))
        if self.source:
            drawn = policy = f"{len(self.episodes):,}, as {self.source} lists them"
        else:
            drawn = f"{len(self.episodes) // len(protocol.seeds):,} of each seed ({seeds})"
            supports = "with" if protocol.repeat_supports else "without"
            policy = (
                f"{protocol.draw}, supports {supports} repetition, objects of at least {protocol.min_area:,} pixels"
            )
        resolution = self.scoring.resolution
        masks = {"own": "overlapping objects keep all their pixels", "flat": "later classes cover earlier ones"}
        return {
            "protocol": f"{protocol.name}: {'the frame alone; episodes of a list' if self.source else protocol.note}",
            "data": f"{manifest.name}, {len(manifest.samples):,} images",
            "fold": f"{fold.fold} of scheme {fold.scheme} ({fold.rule})",
            "classes": f"{self.split}: " + ", ".join(manifest.classes[class_id] for class_id in self.classes),
            "episodes": drawn,
            "policy": policy,
            "shots": str(self.shots),
            "input": f"{self.scoring.size} x {self.scoring.size} pixels, resize rule {self.scoring.resize}",
            "scored at": "original size" if resolution == "original" else f"{resolution} x {resolution} pixels",
            "masks": f"{self.scoring.labels}: {masks[self.scoring.labels]}",
            "label 255": "not counted" if self.scoring.ignore_255 else "counted as background",
            **_training(header),
        }


def plan_evaluation(
    config: FoldConfig, evaluation: EvalConfig, header: ExportHeader, manifest: Manifest, size: int
) -> EvaluationPlan:
    """Plan an evaluation.

    header: of the weights; empty if the method needs no training. size: side of the method's own input, pixels.
    Raises ConfigError or ShardError if options, weights and shards do not fit each other.
    """
    scheme = config.scheme or header.scheme or "interleaved"
    number = (header.fold or 0) if config.fold is None else config.fold
    novel = config.novel or (header.novel or [] if scheme == "list" else [])
    shots = config.shots or header.shots or 1
    fold = fold_of(scheme, number, manifest, [str(name) for name in novel], shots)
    _check_unseen(evaluation, fold, header, manifest)
    classes = fold.novel if evaluation.split == "novel" else fold.base
    protocol = evaluation.protocol_for(scheme)
    if evaluation.episode_list:
        episodes = read_list(evaluation.episode_list, manifest, shots)
        if strange := {episode.class_id for episode in episodes} - {*classes}:
            raise ConfigError(
                f"eval.episode_list {evaluation.episode_list} has episodes of {manifest.classes[min(strange)]}, which "
                f"is none of the {evaluation.split} classes of fold {number} of scheme {scheme}: set episodes.fold, "
                "episodes.scheme or eval.split"
            )
    else:
        episodes = evaluation_episodes(
            manifest, classes, protocol, shots, protocol.episodes, protocol.seeds, passes=protocol.passes
        )
    scoring = Scoring(
        size=evaluation.size or size,
        resize=protocol.resize,
        resolution=protocol.resolution,
        labels=protocol.labels,
        ignore_255=protocol.ignore_255,
    )
    return EvaluationPlan(
        fold=fold,
        split=evaluation.split,
        classes=classes,
        shots=shots,
        protocol=protocol,
        episodes=episodes,
        scoring=scoring,
        source=evaluation.episode_list,
    )


def require_valid_size(config: Any, size: int | None, key: str = "eval.size") -> None:
    """Raise ConfigError if a method of options `config` does not take images of `size` pixels a side.

    key: name of the option that the user typed.
    """
    try:
        replace(config, size=size or config.size)
    except ConfigError as error:
        raise ConfigError(str(error).replace("method.size", key)) from None


def _check_unseen(evaluation: EvalConfig, fold: Fold, header: ExportHeader, manifest: Manifest) -> None:
    """Raise ConfigError if the weights were trained on novel classes of this fold."""
    if evaluation.split != "novel" or not header.learned:
        return
    if header.scheme == fold.scheme and header.fold != fold.fold:
        raise ConfigError(
            f"episodes.fold is {fold.fold} but the weights were trained on fold {header.fold} of scheme "
            f"{fold.scheme}, and have learned this fold's novel classes: leave episodes.fold out"
        )
    if header.unseen_classes is None or header.data != manifest.name:
        return
    if learned := [manifest.classes[c] for c in fold.novel if c not in header.unseen_classes]:
        raise ConfigError(
            f"the novel classes of scheme {fold.scheme} are not those of the weights, which have learned "
            f"{', '.join(learned[:3])} ({len(learned)} of {len(fold.novel)}): leave episodes.scheme and "
            "episodes.novel out"
        )


def _training(header: ExportHeader) -> dict[str, str]:
    """The part of the statement on the training of the weights."""
    if not header.learned:
        return {"training": "none"}
    kept = "dropped" if header.novel_in_training == "drop" else "kept as background"
    statement = {
        "trained on": f"{header.data or 'unknown data'}, scheme {header.scheme}, fold {header.fold}, "
        f"{_known(header.shots)} shot(s); images with novel classes {kept}",
        "training length": f"{_known(header.steps)} steps, {_known(header.episodes_seen)} episodes",
        "weights chosen by": SELECTED_ON[header.selected_on or "none"],
    }
    prior = header.prior
    if prior is not None:
        statement["prior trained"] = (
            f"on {prior.data or 'unknown data'}, {_known(prior.epochs)} epochs, {_known(prior.images_seen)} images seen"
        )
    return statement


def _known(value: float | None) -> str:
    return "?" if value is None else str(value)
