"""Evaluation protocols by name: everything besides the method that decides a score.

The values are those of the reference implementations; `note` states what cannot be reproduced here. docs/protocols.md
lists them.
"""

from dataclasses import dataclass, replace

from fss.data.episodes import Policy
from fss.data.transforms import Resize, Resolution
from fss.datasets import dataset_named
from fss.datasets.base import NOT_THE_SAME_EPISODES, ProtocolName
from fss.errors import ConfigError

SEEDS_OF_123 = (510, 365, 382, 322, 988, 98, 742, 17, 595, 106)  # legacy NumPy: seed(123); randint(0, 1000, 10)


@dataclass(frozen=True, kw_only=True)
class Protocol(Policy):
    """Rules by which a method is evaluated on a data set: the episodes, and the frame in which they are scored."""

    name: ProtocolName
    episodes: int
    """Episodes of each seed."""
    passes: int | None = None
    """Most passes over the queries of an ordered policy; None: as many as the episodes take."""
    seeds: tuple[int, ...]
    """Every seed is one run; several give a mean and a standard deviation."""
    resize: Resize
    """Rule that fits an image into the square input, see fss.data.transforms.fit_image."""
    resolution: Resolution
    """Size at which predictions are scored: the photograph's own, or a square of so many pixels a side."""
    ignore_255: bool = True
    """Leave pixels of unknown class out of the score; False counts them as background."""
    note: str
    """Difference from the published runs, in one sentence."""


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
"""On PASCAL-5i; `DataSet.changes` has what differs on another set."""


def protocol_of(name: ProtocolName, scheme: str) -> Protocol:
    """Return protocol `name` on the data set of `scheme`. Users' own sets ('interleaved', 'list') take PASCAL's values.

    Raises ConfigError if there is no such scheme, or the protocol was never used on its data set.
    """
    dataset = dataset_named(scheme)
    if dataset.protocols is not None and name not in dataset.protocols:
        raise ConfigError(
            f"eval.protocol {name} was never used on {dataset.title}: choose {', '.join(dataset.protocols)}"
        )
    return replace(PROTOCOLS[name], **dataset.changes.get(name, {}))
