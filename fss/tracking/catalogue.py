"""The one catalogue of logged values: `METRICS`, one entry a kind of value, and `PAGES`, the charts made of them.

The console line (`fss.tracking.log`), the curves and the speed table of a page (`fss.report`), wandb's views
(`fss.tracking.dashboard`), TensorBoard's layout (`fss.tracking.tensorboard_tracker`) and docs/dashboards.md are made of
it. A test reads every key of it back from runs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from fss.compat import LOG_KEYS
from fss.tracking.tracker import Kind

Axis = Literal["free", "from_zero", "fraction"]
"""Vertical axis of a curve: as the values are; from zero; from zero in per cent."""

CHANCE_LEVEL = "chance_level/"
"""Begins the key of the value that guessing gives for the value with the rest of the key."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A logged number, or several of one kind."""

    key: str
    """Shell pattern on the key, with 'speed/' before the keys that metrics.jsonl nests under 'speed'."""
    panel: str | None = None
    """Title of its panel in the curves of a training, with {unit} for the samples of a batch; None: no panel."""
    axis: Axis = "free"
    """Of that panel."""
    console: bool = False
    """True if a console line shows it."""
    summary: str | None = None
    """Label in the speed table of a page, with {unit} as above; None: not in the table."""
    factor: float = 1
    """From the logged value to the one in that table."""
    decimals: int = 1
    """Of the value in that table."""


METRICS = (  # panels come in this order
    Metric(key="loss", panel="loss", console=True),
    Metric(key="loss/*", panel="loss", console=True),
    Metric(key="top1/*", panel="positive pair ranked first", axis="fraction", console=True),
    Metric(key="knn/top1", panel="kNN top-1 on held-out crops", axis="fraction", console=True),
    Metric(key="knn/chance_level"),  # drawn as the baseline of knn/top1
    Metric(key="knn/images"),
    Metric(key="knn/unreadable"),
    Metric(key="val/miou", panel="validation", axis="fraction", console=True),
    Metric(key="val/fb_iou", panel="validation", axis="fraction"),
    Metric(key="val/iou/*"),
    Metric(key="iou", panel="IoU of training queries", axis="fraction"),
    Metric(key="accuracy", panel="training pixels that are right", axis="fraction"),
    Metric(key="positive/*", panel="cosine similarity of pairs"),
    Metric(key="negative/*", panel="cosine similarity of pairs"),
    Metric(key="spread/*", panel="spread of embeddings (0: collapsed)", axis="from_zero"),
    Metric(key="fill/*"),
    Metric(key="queue_age/*"),
    Metric(key="key_similarity/*"),
    Metric(key="grad_norm", panel="gradient norm", axis="from_zero"),
    Metric(key="lr", panel="learning rate", axis="from_zero"),
    Metric(key="epoch"),
    Metric(key="speed/images_per_s", panel="{unit} / s, all ranks", axis="from_zero", summary="{unit} / s, all ranks"),
    Metric(key="speed/step_s", summary="optimizer step, ms", factor=1000, decimals=0),
    Metric(
        key="speed/data_wait",
        panel="share of time waiting for data",
        axis="fraction",
        summary="waiting for data, % of the time",
        factor=100,
    ),
    Metric(key="speed/peak_memory_mb", summary="peak memory of rank 0, MiB", decimals=0),
    Metric(key="speed/s_per_episode"),
    Metric(key="miou", console=True),
    Metric(key="miou_std"),
    Metric(key="fb_iou"),
    Metric(key="fb_iou_std"),
    Metric(key="iou/*"),
)


def metric_of(key: str) -> Metric | None:
    """The catalogue's entry for a logged key; None for a value of a method that the catalogue does not know."""
    return next((metric for metric in METRICS if fnmatchcase(key, metric.key)), None)


def panel_metrics() -> dict[str, list[Metric]]:
    """Title of a panel of curves -> its metrics, in the order of the catalogue."""
    panels: dict[str, list[Metric]] = {}
    for metric in METRICS:
        if metric.panel is not None:
            panels.setdefault(metric.panel, []).append(metric)
    return panels


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart of a dashboard.

    drawn as: lines over the steps; a histogram at every logged step; bars, a value of each run beside other runs';
    classes, a table of classes as bars; a table; pictures.
    """

    title: str
    keys: tuple[str, ...]
    """Logged keys; in those of lines a * stands for any characters, because they depend on data or method."""
    look: str
    """Advice for the reader, for docs/dashboards.md."""
    drawn: Literal["lines", "histogram", "bars", "classes", "table", "pictures"] = "lines"

    @property
    def patterns(self) -> tuple[str, ...]:
        """The keys as regular expressions."""
        return tuple(map(_pattern, self.keys))

    @property
    def earlier_keys(self) -> tuple[str, ...]:
        """Keys under which earlier versions logged the same values: their runs appear in the chart, too."""
        return tuple(earlier for key in self.keys for earlier, current in LOG_KEYS.items() if current == key)

    @property
    def all_patterns(self) -> tuple[str, ...]:
        """The keys of this and of earlier versions as regular expressions."""
        return (*self.patterns, *map(_pattern, self.earlier_keys))


def _pattern(key: str) -> str:
    return re.escape(key).replace(r"\*", ".*")


OPTIMISATION = [
    Chart(title="Gradient norm", keys=("grad_norm",), look="spikes before a loss that jumps: lower `optim.lr`"),
    Chart(title="Learning rate", keys=("lr",), look="warm-up and decay as planned"),
    Chart(title="Epochs", keys=("epoch",), look="how often the data was seen"),
]
SPEED = [
    Chart(
        title="Throughput",
        keys=("speed/images_per_s",),
        look="images (meta-training: episodes) a second of all ranks; should be flat",
    ),
    Chart(
        title="Data wait",
        keys=("speed/data_wait",),
        look="share of rank 0's time; above 0.1 the data is too slow: raise `data.workers`, use a local disk, or "
        "pretrain with `data.backend` device",
    ),
    Chart(
        title="Seconds a step", keys=("speed/step_s",), look="a jump without data wait: a rank or the network slowed"
    ),
    Chart(
        title="Peak memory",
        keys=("speed/peak_memory_mb",),
        look="MiB of rank 0's GPU, without one of its process; growth without end is a leak",
    ),
]
CLASSES = [
    Chart(title="mIoU", keys=("val/miou",), look="the highest chooses `best.safetensors`"),
    Chart(title="IoU by class", keys=("val/iou/*",), look="classes that stay at 0 while others rise"),
    Chart(title="IoU by class, latest", keys=("validation/classes",), drawn="classes", look="the same as bars"),
]
VALIDATION_PICTURES = [
    Chart(
        title="Validation and curves",
        keys=("validation/picture", "report/curves"),
        drawn="pictures",
        look="the whole sheet of a validation; the slider goes through the steps",
    )
]
PAGES: Mapping[Kind, Mapping[str, Sequence[Chart]]] = {  # kind of a job -> section -> charts
    "pretrain": {
        "Contrast": [
            Chart(
                title="Loss",
                keys=("loss", "chance_level/loss"),
                look="rises to the level of guessing while the queues fill, then falls; if not, nothing is learned",
            ),
            Chart(
                title="Loss by contrast",
                keys=("loss/global", "chance_level/loss/global", "loss/local", "chance_level/loss/local"),
                look="each against its own ln(K + 1)",
            ),
            Chart(
                title="Positive pair ranked first",
                keys=("top1/global", "top1/local"),
                look="near 1 at once is too good: batch statistics or the age of keys give the pairs away",
            ),
            Chart(
                title="Similarity of pairs",
                keys=("positive/global", "negative/global", "positive/local", "negative/local"),
                look="positive and negative must part; both near 1 is collapse",
            ),
            Chart(
                title="Spread of embeddings",
                keys=("spread/global", "spread/local"),
                look="1: all directions; towards 0: collapse",
            ),
        ],
        "Queues": [
            Chart(
                title="Filled share",
                keys=("fill/global", "fill/local"),
                look="below 1 some negatives are random vectors: loss and top1 mean little yet",
            ),
            Chart(
                title="Age of keys",
                keys=("queue_age/global", "queue_age/local"),
                drawn="histogram",
                look="images seen since a key was made, flat up to the oldest; beyond the images of the data set every "
                "image meets old keys of itself",
            ),
            Chart(
                title="Latest keys against young ones",
                drawn="histogram",
                keys=("key_similarity/global_young", "key_similarity/local_young"),
                look="cosines to the youngest quarter; all near 1 is collapse",
            ),
            Chart(
                title="Latest keys against old ones",
                drawn="histogram",
                keys=("key_similarity/global_old", "key_similarity/local_old"),
                look="cosines to the oldest quarter; a peak elsewhere than the young one's: a stale queue, whose keys "
                "reveal their age. Raise `method.momentum`, lower `optim.lr` or the queue",
            ),
        ],
        "Features": [
            Chart(
                title="kNN on held-out crops",
                keys=("knn/top1", "knn/chance_level"),
                look="must rise above the level of guessing, the share of the commonest class",
            )
        ],
        "Optimisation": OPTIMISATION,
        "Speed": SPEED,
        "Report": [
            Chart(
                title="Curves, features and views",
                keys=("report/curves", "report/dense", "report/views"),
                drawn="pictures",
                look="the two views must still show the same object",
            )
        ],
    },
    "base": {
        "Segmentation": [
            Chart(title="Loss", keys=("loss", "chance_level/loss"), look="guessing costs ln(1 + classes)"),
            Chart(
                title="Training pixels that are right",
                keys=("accuracy",),
                look="predicting background everywhere gives the share of background",
            ),
        ],
        "Validation": [
            *CLASSES,
            Chart(
                title="Examples",
                keys=("validation/examples",),
                drawn="table",
                look="image, truth and prediction of the same images every time",
            ),
        ],
        "Optimisation": OPTIMISATION,
        "Speed": SPEED,
        "Report": VALIDATION_PICTURES,
    },
    "meta": {
        "Episodes": [
            Chart(title="Loss", keys=("loss",), look="the weighted sum of the parts"),
            Chart(
                title="Loss by part",
                keys=("loss/*", "chance_level/loss/*"),
                look="guessing costs ln 2; if a part stays there, nothing is learned",
            ),
            Chart(
                title="IoU of training queries",
                keys=("iou",),
                look="rising while the mIoU of validation falls: the method overfits to the classes of training",
            ),
        ],
        "Validation": [
            *CLASSES,
            Chart(
                title="FB-IoU",
                keys=("val/fb_iou",),
                look="near a half with a small mIoU: everything is predicted as background",
            ),
            Chart(
                title="Examples",
                keys=("validation/examples",),
                drawn="table",
                look="supports, query, truth and prediction of the same episodes every time",
            ),
        ],
        "Optimisation": OPTIMISATION,
        "Speed": SPEED,
        "Report": VALIDATION_PICTURES,
    },
    "evaluate": {
        "Scores": [
            Chart(title="mIoU", keys=("miou",), drawn="bars", look="the mean over seeds, of runs of one protocol only"),
            Chart(title="Deviation over seeds", keys=("miou_std",), drawn="bars", look="what a difference must exceed"),
            Chart(title="FB-IoU", keys=("fb_iou",), drawn="bars", look="moves little: background is most of it"),
            Chart(title="IoU by class", keys=("iou/*",), look="one point a run, which wandb draws as bars"),
            Chart(title="Classes", keys=("classes",), drawn="classes", look="the classes that carry or lose the mean"),
            Chart(title="Classes, with episodes", keys=("classes",), drawn="table", look="classes of few episodes"),
        ],
        "Speed": [
            Chart(
                title="Seconds an episode",
                keys=("speed/s_per_episode",),
                look="of rank 0, every half minute and at the end over all; falls as features are found in the cache",
            ),
            Chart(title="Peak memory", keys=("speed/peak_memory_mb",), look="lower `eval.cache_gib` before it ends"),
        ],
        "Report": [
            Chart(
                title="Best, median and worst episodes",
                drawn="pictures",
                keys=("report/best", "report/median", "report/worst", "report/classes"),
                look="what the worst have in common",
            )
        ],
    },
}
