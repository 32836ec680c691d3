"""From points and their masks to one mask: clusters, positive and overshooting gating (GF-SAM, sections 4.2 and 4.3).

Masks stay logits of a low resolution. The graph reads them at the prompts, the gates at the positions of the feature
grid, and only the final union is made at full size. Small computations run on the CPU. The host waits for the device at
most three times: for what it reads of the masks, for the similarities, and for whether the union is empty.

Positive gating uses float32 and the order of operations of the reference implementation: most masks are already covered
when they are judged, and then the sign of a rounding error decides whether they are merged.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

from fss.nn.alignment import AREA, Alignment, min_max_scaled, prompts
from fss.nn.gfsam_rules import Rules
from fss.nn.mask_logits import at_pixels, on_grid, shares, union
from fss.nn.transfer import to_device, to_host

CENTRES = 10  # of k-means++ in Table 4


@dataclass(frozen=True)
class Gating:
    """The result of positive gating of N masks."""

    accepted: Tensor
    """P+, bool [N]."""
    margin: Tensor
    """Positive minus negative positions (or scores) of the part by which each mask was judged, float32 [N]."""
    score: Tensor
    """The margin of the mask judged last in the same cluster, float32 [N]; the fallback chooses by it."""
    order: Tensor
    """The masks in the order in which they were judged, cluster by cluster, int64 [N]."""


@dataclass(frozen=True)
class Outcome:
    """The mask of a target, and the decisions behind it; all but `mask` is on the CPU."""

    mask: Tensor
    """The prediction, bool [size, size], on the device of the logits."""
    clusters: Tensor
    """The cluster of every point, int64 [N]."""
    gating: Gating
    """Positive gating."""
    consistent: Tensor
    """P sc after the majority rule, bool [N]."""
    chosen: Tensor
    """The masks that were merged, bool [N]."""
    fallback: bool
    """Whether the gates left no mask and that of the fallback was taken."""


def segment(target: Tensor, alignment: Alignment, logits: Tensor, size: int, rules: Rules) -> Outcome:
    """Compute the mask of a target from its unit features [g g, C] and the mask logits [N, s, s] of its N points.

    s divides `size`, the side of the image. N = 0 gives an empty mask.
    """
    points, device = alignment.points, logits.device
    assert len(points) == len(logits), f"{len(points)} points, {len(logits)} masks"
    x, y = to_device(prompts(points, alignment.grid, size, rules), device).unbind(1)
    covers, bits = to_host(at_pixels(logits, y, x, size), on_grid(logits, alignment.grid, size))  # [N, N], [N, 2g, 2g]
    clusters = cluster(covers, points, rules)
    gating = gate(bits, clusters, *scores(alignment, rules), size, rules)
    areas = cluster_areas(bits, clusters, size)
    consistent = self_consistent(target, points, clusters, areas, rules)
    chosen = gating.accepted & consistent
    mask = union(logits, to_device(chosen.nonzero()[:, 0], device), size)
    fallback = bool(rules.fallback) and len(points) > 0 and not (chosen.any() and mask.any())
    if fallback:
        # The others count with score 0: if all candidates are negative, a point that is no candidate may win.
        best = torch.where(gating.accepted ^ consistent, gating.score, 0).argmax()
        chosen = torch.zeros_like(chosen).index_fill_(0, best, True)
        mask = union(logits, to_device(best[None], device), size)
    return Outcome(mask, clusters, gating, consistent, chosen, fallback)


def cluster(covers: Tensor, points: Tensor, rules: Rules) -> Tensor:
    """Cluster N points (x, y), int64 [N, 2]: gives the cluster of each, int64 [N], from 0.

    covers: bool [N, N], whether the mask of the row covers the point of the column.
    """
    if len(points) == 0:
        return torch.zeros(0, dtype=torch.int64)
    if rules.clusters == "kmeans":
        places = points.double().numpy()
        _, labels = kmeans2(places, min(CENTRES, len(points)), minit="++", rng=np.random.default_rng(0))
        labels = np.unique(labels, return_inverse=True)[1]  # a centre may have lost all its points
    else:
        _, labels = connected_components(covers.numpy(), connection=rules.clusters)
    return torch.from_numpy(labels).long()


def scores(alignment: Alignment, rules: Rules) -> tuple[Tensor, Tensor]:
    """The positive and the negative score of every position, float32 [g g] each: the two sides of Eq. 4."""
    positive, negative = alignment.mean.flatten().float(), alignment.negative.flatten().float()
    low, high = positive.aminmax()
    midpoint = (low + high) / 2
    match rules.pivot:
        case "product":
            return positive**2, negative * midpoint
        case "sum":
            return positive * 2, negative + midpoint
        case "middle":
            return positive, midpoint.expand_as(positive)
        case "negative":
            return positive, negative
        case "aligned":
            return alignment.select.flatten().float(), min_max_scaled(negative)


def gate(bits: Tensor, clusters: Tensor, positive: Tensor, negative: Tensor, size: int, rules: Rules) -> Gating:
    """Gate masks bool [N, 2g, 2g] (see `on_grid`) by the scores [g g] of the positions that they cover (Eq. 4, 5).

    clusters: int64 [N]; size: side of the image, pixels.
    """
    soft = shares(bits, size)  # [N, g g]
    polarity = (positive > negative).float()  # Eq. 4
    worth = 2 * polarity - 1 if rules.count == "num" else positive - negative
    margin, score = balance(soft, worth), torch.zeros(len(bits))
    order = torch.arange(len(bits))
    match rules.gate:
        case "each":
            score = margin
        case "union":
            score = margin = balance(cluster_areas(bits, clusters, size), worth)[clusters]
        case "growth":
            rank_by = positive - negative if rules.order == "margin" else polarity
            mean = (soft * rank_by).sum(1) / (soft.sum(1) + 1e-6)
            order = ranked(mean, clusters)
            margin, score = grow(bits, soft, clusters, order, worth, size, rules)
    accepted = torch.ones(len(bits), dtype=torch.bool) if rules.gate == "none" else margin > 0
    return Gating(accepted, margin, score, order)


def balance(masks: Tensor, worth: Tensor) -> Tensor:
    """The positive worth that masks [..., g g] cover minus the negative: [...]; worth: [g g]."""
    return (masks * worth.clamp(min=0)).sum(-1) - (masks * (-worth).clamp(min=0)).sum(-1)


def ranked(mean: Tensor, clusters: Tensor) -> Tensor:
    """Sort N masks by cluster, int64 [N], and in each by falling `mean`, [N]; gives their indices, int64 [N].

    Equal ones, which are common, have the order of torch's unstable sort. The first of them counts, and so matters to
    the final mask; this is the choice of the reference implementation.
    """
    groups = [(clusters == p).nonzero()[:, 0] for p in clusters.unique()]
    return torch.cat([members[mean[members].argsort(descending=True)] for members in groups] or [clusters])


def grow(
    bits: Tensor, soft: Tensor, clusters: Tensor, order: Tensor, worth: Tensor, size: int, rules: Rules
) -> tuple[Tensor, Tensor]:
    """Grow masks (Alg. 1): judge each mask by the part that it adds to those of its cluster accepted before.

    bits [N, 2g, 2g] and soft [N, g g] are the masks before and after resizing. Gives the margins, [N], and for each
    mask the last margin in its cluster, [N].
    """
    masks = soft if rules.overlap == "soft" else bits
    covered = masks.new_zeros(len(clusters.unique()), *masks.shape[1:])
    margin, last, home = torch.zeros(len(bits)), torch.zeros(len(covered)), clusters.tolist()
    for i in order.tolist():
        p = home[i]
        if rules.overlap == "soft":
            new = added = masks[i] * (1 - covered[p])
        else:
            new = masks[i] & ~covered[p]
            added = shares(new[None], size)[0]
        last[p] = margin[i] = balance(added, worth)
        if margin[i] > 0:
            covered[p] += new
    return margin, last[clusters]


def cluster_areas(bits: Tensor, clusters: Tensor, size: int) -> Tensor:
    """The unions of all masks bool [N, 2g, 2g] of each cluster on the feature grid, float32 [clusters, g g]."""
    unions = bits.new_zeros(len(clusters.unique()), *bits.shape[1:])
    for p in range(len(unions)):
        unions[p] = bits[clusters == p].any(0)
    return shares(unions, size)


def self_consistent(target: Tensor, points: Tensor, clusters: Tensor, areas: Tensor, rules: Rules) -> Tensor:
    """Gate overshooting (Eq. 6): whether each point is most similar to its own cluster, bool [N].

    target: unit features [g g, C]; areas: [clusters, g g]. The first of equally similar clusters counts.
    """
    if rules.consistency == "none" or len(points) == 0:
        return torch.ones(len(points), dtype=torch.bool)
    own = similarity_to_clusters(target, points, clusters, areas, rules).cpu()  # [N, clusters]
    if rules.distance:
        apart = torch.cdist(points.double(), points.double())
        nearest = torch.full(own.shape, torch.inf, dtype=torch.float64)
        nearest.scatter_reduce_(1, clusters.expand(len(points), -1), apart, "amin")
        own = own / nearest.masked_fill(nearest == 0, 1)
    consistent = own.argmax(1) == clusters
    if rules.majority:
        share = torch.bincount(clusters, consistent.double()) / torch.bincount(clusters)
        consistent &= (share >= 0.5)[clusters]
    return consistent


def similarity_to_clusters(target: Tensor, points: Tensor, clusters: Tensor, areas: Tensor, rules: Rules) -> Tensor:
    """The similarity of each of N points to each cluster by `rules.consistency`, float64 [N, clusters].

    target: unit features [g g, C], whose device has the result; points: int64 [N, 2]; areas: [clusters, g g], both on
    the CPU.
    """
    x, y = points.unbind(1)
    index = y * round(len(target) ** 0.5) + x
    if rules.consistency == "points":
        areas = torch.zeros_like(areas)
        areas[clusters, index] = 1
    areas = to_device((areas / (areas.sum(1, keepdim=True) + AREA * len(target))).to(target.dtype), target.device)
    at_points = target.index_select(0, to_device(index, target.device))  # [N, C]
    if rules.consistency == "prototype":
        similarity = at_points @ F.normalize(areas @ target, dim=1).T
    elif rules.relu:  # of each cosine before the mean
        similarity = (at_points @ target.T).relu() @ areas.T
    else:
        similarity = at_points @ (areas @ target).T
    return similarity.double()
