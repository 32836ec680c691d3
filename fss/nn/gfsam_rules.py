"""The decisions of GF-SAM between features and final mask, each a named switch (Zhang et al., NeurIPS 2024).

The reference implementation differs from the paper in places. `reading` sets these switches together, and each can be
set by itself. The other fields are the paper's ablations (Tables 3-6, 14, 15) and repairs of ours.
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
"""The values of the switches that are None, by `reading`."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The switches of alignment, clustering, gating and merging; once constructed, none of them is None."""

    reading: Reading = "reference"
    """The source of the switches below that are None: the reference implementation or the paper."""
    channel_norm: bool | None = None
    """Whether every channel of an image is scaled to unit length over its positions before the cosine (reference: yes,
    paper: no). None: by `reading`."""
    relu: bool | None = None
    """Whether negative cosines count as 0 (Eq. 1; reference: no, paper: yes). None: by `reading`."""
    soft_mask: bool | None = None
    """Whether a reference mask on the feature grid keeps the share of the class at each position as a weight
    (reference); if not, positions with at least one half are the class and the others background (paper). None: by
    `reading`."""
    keep_ties: bool | None = None
    """Whether a position equally similar to background and object may become a point (reference: yes, Eq. 3: no). None:
    by `reading`."""
    limit: int | None = None
    """Largest number of points; 0 for no limit (reference: 128, paper: 0). None: by `reading`."""
    one_point: bool | None = None
    """Whether a sum below 1 still gives a point (reference: yes, paper: no). None: by `reading`."""
    order: Literal["margin", "ratio"] | None = None
    """Order of the masks of a cluster before growth. 'margin': by the mean margin of positive over negative score on
    the mask (reference). 'ratio': by its share of positive positions (paper). None: by `reading`."""
    overlap: Literal["soft", "exact"] | None = None
    """Removal of covered parts in growth. 'soft': on masks already averaged on the feature grid (reference). 'exact':
    pixel by pixel before that (Alg. 1). None: by `reading`."""
    majority: bool | None = None
    """Whether a cluster loses all its points if fewer than half are self-consistent (reference: yes, paper: no rule).
    None: by `reading`."""
    fallback: bool | None = None
    """Whether one mask is taken if the gates leave none (reference: yes, paper: no rule). None: by `reading`."""
    similarity: Literal["mix", "mean", "max"] = "mix"
    """The positive map from which points are chosen: mean times maximum, or one of them (Table 3)."""
    negative: bool = True
    """Whether positions more similar to the references' background are left out of the choice (Table 3)."""
    selection: Literal["sum", "all"] = "sum"
    """Number of points: the sum of the map (Eq. 3), or all positions that are left, best first (Table 3)."""
    clusters: Literal["weak", "strong", "kmeans"] = "weak"
    """Clustering of the points: weak or strong components of the graph of coverage, or k-means++ with 10 centres on
    their coordinates (Table 4)."""
    gate: Literal["growth", "each", "union", "none"] = "growth"
    """Positive gating: by mask growth, of each mask by itself (Table 5), of the union of each cluster (Table 15), or
    none (Table 4)."""
    count: Literal["num", "sum"] = "num"
    """Quantity of positive gating: numbers of positive and negative positions, or sums of their scores (Table 5)."""
    pivot: Literal["product", "sum", "middle", "negative", "aligned"] = "product"
    """Threshold of a position's positive similarity: its negative similarity times or plus the middle of the positive
    map, or one of the two (Table 14). 'aligned', ours: both maps are scaled to 0..1 first, as for the choice of points
    (Eq. 3), so that no mask grows over positions from which no point may come."""
    consistency: Literal["mean", "prototype", "points", "none"] = "mean"
    """Overshooting gating: a point is compared with every position under the union of a cluster's masks ('mean'), with
    their mean feature ('prototype'), with the cluster's points, or not at all (Tables 4 and 6)."""
    distance: bool = True
    """Whether a cluster counts less if its nearest point is farther away (Table 6)."""
    prompt: Literal["corner", "center"] = "corner"
    """The pixel of a position's patch that prompts SAM. 'corner' is the paper's; 'center' removes the bias of half a
    patch that the paper names among its limits (A.2)."""
    presence: bool = False
    """Whether nothing is segmented if no position of the target is nearer to the object than to the background, by the
    mean similarities of the references with themselves. If false, an absent class still gets a mask."""

    def __post_init__(self) -> None:
        for name, value in READINGS[self.reading].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        at_least("method", self, limit=0)
