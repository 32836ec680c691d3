"""What every job logs for people to look at: `PAGES`, the one list of charts.

docs/dashboards.md prints it, wandb's views and TensorBoard's layout are made of it, and a test reads every key of it
back from runs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fss.tracking.tracker import Kind


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One panel.

    drawn as: lines over the steps; a histogram at every logged step; bars, a value of each run beside other runs';
    classes, a table of classes as bars; a table; pictures.
    """

    title: str
    keys: tuple[str, ...]
    """Names of what is logged; of lines a * stands for any characters, because they depend on data or method."""
    look: str
    """What to look for."""
    drawn: Literal["lines", "histogram", "bars", "classes", "table", "pictures"] = "lines"

    @property
    def patterns(self) -> tuple[str, ...]:
        """The keys as regular expressions."""
        return tuple(re.escape(key).replace(r"\*", ".*") for key in self.keys)


OPTIMISATION = [
    Chart(
        title="Gradient norm",
        keys=("grad_norm",),
        look="spikes before a loss that jumps: lower `optim.lr`",
    ),
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
        look="share of rank 0's time; above 0.1 the step starves: more `data.workers`, shards on the node's own disk",
    ),
    Chart(
        title="Seconds a step",
        keys=("speed/step_s",),
        look="a jump without data wait: a rank or the network slowed",
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
SHEETS = [
    Chart(
        title="Validation and curves",
        keys=("validation/picture", "report/curves"),
        drawn="pictures",
        look="the whole sheet of a validation; the slider goes through the steps",
    ),
]
PAGES: Mapping[Kind, Mapping[str, Sequence[Chart]]] = {
    "pretrain": {
        "Contrast": [
            Chart(
                title="Loss",
                keys=("loss", "chance/loss"),
                look="rises towards chance while the queues fill, then falls; staying at chance nothing is learned",
            ),
            Chart(
                title="Loss by contrast",
                keys=("loss/global", "chance/loss/global", "loss/local", "chance/loss/local"),
                look="each against its own ln(K + 1)",
            ),
            Chart(
                title="Positive pair ranked first",
                keys=("top1/global", "top1/local"),
                look="near 1 at once is too good: pairs are told by batch statistics or age, not by what they show",
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
                look="below 1 some negatives are random vectors: loss and top1 say little yet",
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
                "tell their age. Raise `method.momentum`, lower `optim.lr` or the queue",
            ),
        ],
        "Features": [
            Chart(
                title="kNN on held-out crops",
                keys=("knn/top1", "knn/chance"),
                look="must leave chance, the share of the commonest class",
            ),
        ],
        "Optimisation": OPTIMISATION,
        "Speed": SPEED,
        "Report": [
            Chart(
                title="Curves, features and views",
                keys=("report/curves", "report/dense", "report/views"),
                drawn="pictures",
                look="whether the two views still show the same thing",
            ),
        ],
    },
    "base": {
        "Segmentation": [
            Chart(title="Loss", keys=("loss", "chance/loss"), look="chance is ln(1 + classes)"),
            Chart(
                title="Training pixels that are right",
                keys=("accuracy",),
                look="background everywhere gives the share of background",
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
        "Report": SHEETS,
    },
    "meta": {
        "Episodes": [
            Chart(title="Loss", keys=("loss",), look="the weighted sum of the parts"),
            Chart(
                title="Loss by part",
                keys=("loss/*", "chance/loss/*"),
                look="chance is ln 2, a coin's; staying there nothing is learned",
            ),
            Chart(
                title="IoU of training queries",
                keys=("iou",),
                look="rising while the mIoU of validation falls: the classes of training are learned by heart",
            ),
        ],
        "Validation": [
            *CLASSES,
            Chart(
                title="FB-IoU",
                keys=("val/fb_iou",),
                look="near a half with a small mIoU: background is all that is found",
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
        "Report": SHEETS,
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
            ),
        ],
    },
}
