"""The decisions GF-SAM takes between features and final mask, each a named switch (Zhang et al., NeurIPS 2024).

The published code departs from the paper in places; `reading` settles these together, and each can still be set by
itself. The other fields are the paper's ablations (Tables 3-6, 14, 15) and repairs of ours.
"""

from dataclasses import dataclass
from typing import Any, Literal

from fss.errors import at_least

Reading = Literal["reference", "paper"]

READINGS: dict[Reading, dict[str, Any]] = {
    "reference": {
        "channel_norm": True,
        "relu": False,
        "soft_mask": True,
        "keep_ties": True,
        "limit": 128,
        "one_point": True,
        "order": "margin",
        "overlap": "soft",
        "majority": True,
        "fallback": True,
    },
    "paper": {
        "channel_norm": False,
        "relu": True,
        "soft_mask": False,
        "keep_ties": False,
        "limit": 0,
        "one_point": False,
        "order": "ratio",
        "overlap": "exact",
        "majority": False,
        "fallback": False,
    },
}
"""What a switch that is left at None becomes."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The switches of alignment, clustering, gating and merging; once constructed, none of them is None."""

    reading: Reading = "reference"
    """What the switches that say so below are where they are not given: as the published code has it, or the paper."""
    channel_norm: bool | None = None
    """Whether every channel of an image is scaled to unit length over its positions before the cosine, as the code does
    and the paper does not. None: as `reading` says."""
    relu: bool | None = None
    """Whether negative cosines count as 0 (Eq. 1), as in the paper and not in the code. None: as `reading` says."""
    soft_mask: bool | None = None
    """Whether a reference mask on the feature grid keeps its shares of the class as weights (code); otherwise positions
    from one half on are the class and the others background (paper). None: as `reading` says."""
    keep_ties: bool | None = None
    """Whether a position as much like the background as like the object may become a point (code: yes, Eq. 3: no).
    None: as `reading` says."""
    limit: int | None = None
    """The most points (code: 128; paper: 0, no limit). None: as `reading` says."""
    one_point: bool | None = None
    """Whether a sum below 1 still gives a point (code: yes, paper: no). None: as `reading` says."""
    order: Literal["margin", "ratio"] | None = None
    """What the masks of a cluster are sorted by before growth: the mean margin of positive over negative score on the
    mask (code) or its share of positive positions (paper). None: as `reading` says."""
    overlap: Literal["soft", "exact"] | None = None
    """How growth takes away what is covered: on masks already averaged on the feature grid (code) or pixel by pixel
    before (Alg. 1). None: as `reading` says."""
    majority: bool | None = None
    """Whether a cluster loses all its points when fewer than half are self-consistent (code: yes, paper: no rule).
    None: as `reading` says."""
    fallback: bool | None = None
    """Whether one mask is taken when the gates leave none (code: yes, paper: no rule). None: as `reading` says."""
    similarity: Literal["mix", "mean", "max"] = "mix"
    """The positive map that points are chosen from: mean times maximum, or one of them (Table 3)."""
    negative: bool = True
    """Whether positions more like the reference's background are left out of the choice (Table 3)."""
    selection: Literal["sum", "all"] = "sum"
    """How many points: the sum of the map (Eq. 3), or every position that is left, best first (Table 3)."""
    clusters: Literal["weak", "strong", "kmeans"] = "weak"
    """How points are clustered: weak or strong components of the graph of coverage, or k-means++ with 10 centres on
    their places (Table 4)."""
    gate: Literal["growth", "each", "union", "none"] = "growth"
    """Positive gating: mask growth, each mask by itself (Table 5), the union of each cluster (Table 15), or none
    (Table 4)."""
    count: Literal["num", "sum"] = "num"
    """What positive gating compares: numbers of positive and negative positions, or sums of their scores (Table 5)."""
    pivot: Literal["product", "sum", "middle", "negative", "aligned"] = "product"
    """What the positive similarity of a position is held against: its negative similarity times or plus the middle of
    the positive map, or one of them (Table 14). 'aligned', ours: both as points are chosen by, each map stretched to
    0..1 first (Eq. 3), so that no mask grows over positions that no point may come from."""
    consistency: Literal["mean", "prototype", "points", "none"] = "mean"
    """Overshooting gating: a point is compared with every position under the union of a cluster's masks, with their
    mean feature, or with the cluster's points; or not at all (Tables 4 and 6)."""
    distance: bool = True
    """Whether a cluster counts for less the further its nearest point lies (Table 6)."""
    prompt: Literal["corner", "center"] = "corner"
    """Which pixel of a position's patch prompts SAM. 'corner' is the paper's; 'center' takes away the bias of half a
    patch that it names among its limits (A.2)."""
    presence: bool = False
    """Whether nothing is segmented where no position of the target is nearer to the object than to the background by
    the mean similarities that the references have with themselves. Without, an absent class still gets a mask."""

    def __post_init__(self) -> None:
        for name, value in READINGS[self.reading].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        at_least("method", self, limit=0)
