"""Evaluation protocols by name: everything besides the method that decides a score.

The figures are those of the published code; `note` says what of it cannot be had here. docs/protocols.md lists them.
"""

from dataclasses import dataclass, replace
from typing import Literal

from fss.data.episodes import Policy
from fss.data.folds import SchemeName
from fss.data.transforms import Resize, Resolution
from fss.errors import ConfigError

ProtocolName = Literal["default", "pfenet", "bam", "hsnet", "mshnet", "hdmnet", "gfsam"]

SEEDS_OF_123 = (510, 365, 382, 322, 988, 98, 742, 17, 595, 106)  # legacy NumPy: seed(123); randint(0, 1000, 10)


@dataclass(frozen=True, kw_only=True)
class Protocol(Policy):
    """How a method is evaluated on a data set: which episodes, and in which frame they are scored."""

    name: ProtocolName
    episodes: int
    """Episodes of each seed."""
    passes: int | None = None
    """At most so many passes over the queries of an ordered policy; None: as many as the episodes take."""
    seeds: tuple[int, ...]
    """Every seed is one run; several give a mean and a standard deviation."""
    resize: Resize
    """How an image gets into the square input, see fss.data.transforms.fit_image."""
    resolution: Resolution
    """Where a prediction meets the truth: at the size of the photograph, or in a square of so many pixels a side."""
    ignore_255: bool = True
    """Whether pixels of unknown class stay out of the score; otherwise they count as background."""
    note: str
    """What differs from the published runs, in one sentence."""


NOT_THE_SAME_EPISODES = "episodes of the same distribution, not the same ones: the published draws "

UNLISTED = NOT_THE_SAME_EPISODES + "come from NumPy's global generator and no list of them is published"
COUNTED = UNLISTED + "; images are counted in the official JSON, there in an extract of it, "

PROTOCOLS: dict[ProtocolName, Protocol] = {
    "default": Protocol(
        name="default",
        draw="round_robin",
        episodes=1000,
        seeds=(0, 1, 2, 3, 4),
        resize="exact",
        resolution="original",
        note="ours: equally many episodes of each class, aspect kept to the pixel, overlapping objects whole",
    ),
    "pfenet": Protocol(
        name="pfenet",
        draw="every_image",
        episodes=5000,
        passes=10,
        seeds=(321,),
        labels="flat",
        resize="compat",
        resolution="original",
        note=NOT_THE_SAME_EPISODES + "depend on the number of loader processes and the torch version",
    ),
    "bam": Protocol(
        name="bam",
        draw="every_image",
        episodes=1000,
        seeds=SEEDS_OF_123[:5],
        labels="flat",
        resize="compat",
        resolution="original",
        note=NOT_THE_SAME_EPISODES + "depend on the number of loader processes; only the first 1000 images are queries",
    ),
    "hdmnet": Protocol(
        name="hdmnet",
        draw="every_image",
        episodes=1000,
        seeds=SEEDS_OF_123,
        labels="flat",
        resize="compat",
        resolution="original",
        note=NOT_THE_SAME_EPISODES + "depend on the number of loader processes",
    ),
    "hsnet": Protocol(
        name="hsnet",
        draw="every_pair",
        repeat_supports=True,
        episodes=1000,
        seeds=(0,),
        labels="flat",
        resize="squash",
        resolution=400,
        note=NOT_THE_SAME_EPISODES + "come from NumPy's global generator; evaluate the published lists to have them",
    ),
    "gfsam": Protocol(
        name="gfsam",
        draw="every_pair",
        repeat_supports=True,
        episodes=1000,
        seeds=(0,),
        labels="flat",
        resize="squash",
        resolution=1024,
        note=NOT_THE_SAME_EPISODES + "come from NumPy's global generator; evaluate the published lists to have them",
    ),
    "mshnet": Protocol(
        name="mshnet",
        draw="class_image",
        episodes=1000,
        seeds=(0,),
        resize="exact",
        resolution="original",
        note="the paper states 1000 episodes, per-class masks and 473 x 473, perhaps by a plain resize as in HSNet: "
        "here the aspect is kept; seeds and resolution are our choice",
    ),
}
"""As on PASCAL-5i."""

BINARY = {"labels": "own", "ignore_255": False, "min_area": 0}  # sets of one mask a class, without unknown pixels
SMALL: tuple[SchemeName, ...] = (
    "fss",
    "lvis",
    "paco",
    "pascal_part",
    "deepglobe",
    "isic",
    "isaid",
    "interleaved",
    "list",
)  # images or objects are small, or may be

ELSEWHERE: dict[tuple[ProtocolName, SchemeName], dict] = {
    ("pfenet", "coco"): {"episodes": 20000, "passes": None},
    ("hdmnet", "coco"): {"episodes": 10000},
    ("hsnet", "coco"): {"draw": "class_image", "ignore_255": False},
    ("gfsam", "coco"): {"draw": "class_image", "ignore_255": False},
    ("hsnet", "fss"): {"draw": "every_image", "episodes": 2400, "passes": 1, "min_area": 0},
    ("gfsam", "fss"): {"draw": "every_image", "episodes": 2400, "passes": 1, "min_area": 0},
    ("gfsam", "lvis"): BINARY
    | {
        "draw": "round_robin",
        "episodes": 2300,
        "note": COUNTED + "so a class near K images may be in or out, and those after it in other folds",
    },
    ("gfsam", "paco"): BINARY
    | {
        "draw": "class_image",
        "episodes": 2500,
        "note": COUNTED + "so a class near K images may be in or out",
    },
    ("gfsam", "pascal_part"): BINARY
    | {
        "draw": "round_robin",
        "episodes": 2500,
        "passes": 1,
        "repeat_supports": False,
        "note": UNLISTED + ", and prefer photographs most of whose objects show the part",
    },
    ("gfsam", "deepglobe"): BINARY | {"draw": "round_robin", "episodes": 600, "note": UNLISTED},
    ("gfsam", "isic"): BINARY | {"draw": "round_robin", "episodes": 600, "note": UNLISTED},
    ("gfsam", "isaid"): {
        "episodes": 5000,
        "passes": 1,
        "min_area": 0,
        "note": "each patch once for each of its classes, in the order of the keys; the published runs have the order, "
        "the patches and the supports of their lists: evaluate these to have them",
    },
    **{("default", scheme): {"min_area": 0} for scheme in SMALL},
}
"""What changes on another data set."""

USED_ON: dict[SchemeName, tuple[str, tuple[ProtocolName, ...]]] = {
    "fss": ("FSS-1000", ("default", "hsnet", "gfsam")),
    "lvis": ("LVIS-92i", ("default", "gfsam")),
    "paco": ("PACO-Part", ("default", "gfsam")),
    "pascal_part": ("PASCAL-Part", ("default", "gfsam")),
    "deepglobe": ("DeepGlobe", ("default", "gfsam")),
    "isic": ("ISIC 2018", ("default", "gfsam")),
    "isaid": ("iSAID-5i", ("default", "gfsam")),
}
"""Data sets on which few protocols were used: their names, and which."""


def protocol_of(name: ProtocolName, scheme: SchemeName) -> Protocol:
    """Protocol `name` on the data set of `scheme`. Users' own sets ('interleaved', 'list') take PASCAL's figures.

    Raises ConfigError where nothing was published for that data set.
    """
    data_set, used = USED_ON.get(scheme, ("", (name,)))
    if name not in used:
        raise ConfigError(f"eval.protocol {name} was never used on {data_set}: choose {', '.join(used)}")
    data = "coco" if scheme == "coco_contiguous" else scheme
    return replace(PROTOCOLS[name], **ELSEWHERE.get((name, data), {}))
