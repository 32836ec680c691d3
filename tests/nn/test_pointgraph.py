"""The graph, both gates and the merge against the equations written out at full size, switch by switch."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from fss.nn.alignment import Alignment, prompts
from fss.nn.gfsam_rules import Rules
from fss.nn.mask_logits import on_grid
from fss.nn.pointgraph import Gating, cluster, gate, ranked, scores, segment, self_consistent

GRID, SIDE, SIZE = 7, 16, 64
N = 14


def scene(seed: int, n: int = N) -> tuple[torch.Tensor, Alignment, torch.Tensor]:
    """A target's features, an alignment with n points, and mask logits: blobs round the prompts, of many sizes."""
    generator = torch.Generator().manual_seed(seed)
    target = F.normalize(torch.randn(GRID * GRID, 5, generator=generator) + 0.5, dim=1)
    mean, largest, negative = torch.rand(3, GRID, GRID, generator=generator)
    cells = torch.randperm(GRID * GRID, generator=generator)[:n].sort().values
    points = torch.stack([cells // GRID, cells % GRID], 1)  # by x, then y
    y, x = torch.meshgrid(*[(torch.arange(SIDE) + 0.5) * SIZE / SIDE] * 2, indexing="ij")
    center = (points + 0.5) * SIZE / GRID + 6 * torch.randn(n, 2, generator=generator)
    radius = 4 + 10 * torch.rand(n, generator=generator) ** 2
    away = (x - center[:, 0, None, None]).hypot(y - center[:, 1, None, None])
    alignment = Alignment(mean=mean, max=largest, negative=negative / 2, select=mean, points=points)
    return target, alignment, radius[:, None, None] - away + 0.01


def full_size(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits[:, None], (SIZE, SIZE), mode="bilinear")[:, 0] > 0


def resized(mask: torch.Tensor) -> torch.Tensor:
    """[SIZE, SIZE] -> float64 [g g]."""
    return F.interpolate(mask[None, None].double(), (GRID, GRID), mode="bilinear").flatten()


def clusters_by_hand(masks: torch.Tensor, pixels: list[list[int]], strong: bool) -> list[int]:
    """Components of the graph of coverage by what reaches what, numbered by their first point."""
    n = len(masks)
    reach = [[i == j or bool(masks[i, y, x]) for j, (x, y) in enumerate(pixels)] for i in range(n)]
    if not strong:
        reach = [[reach[i][j] or reach[j][i] for j in range(n)] for i in range(n)]
    for k in range(n):
        for i in range(n):
            for j in range(n):
                reach[i][j] = reach[i][j] or (reach[i][k] and reach[k][j])
    first = [min(j for j in range(n) if reach[i][j] and reach[j][i]) for i in range(n)]
    return [sorted(set(first)).index(f) for f in first]


def polarity_by_hand(alignment: Alignment, rules: Rules) -> list[tuple[float, float]]:
    mean, negative = alignment.mean.double().flatten().tolist(), alignment.negative.double().flatten().tolist()
    midpoint = (max(mean) + min(mean)) / 2
    make = {
        "product": lambda s, t: (s * s, t * midpoint),
        "sum": lambda s, t: (s + s, t + midpoint),
        "middle": lambda s, t: (s, midpoint),
        "negative": lambda s, t: (s, t),
    }
    if rules.pivot == "aligned":  # what points are chosen by, against the background's map from 0 to 1
        low, high = min(negative), max(negative)
        select = alignment.select.double().flatten().tolist()
        return [(s, (t - low) / (high - low + 1e-6)) for s, t in zip(select, negative, strict=True)]
    return [make[rules.pivot](s, t) for s, t in zip(mean, negative, strict=True)]


ROUNDING = 1e-5  # a margin below it has the sign that rounding left


def accepted_by_hand(
    alignment: Alignment, masks: torch.Tensor, clusters: list[int], rules: Rules, found: Gating
) -> list[bool]:
    """In the order found, which must be a falling one, and with the verdicts found where rounding decides."""
    pairs = polarity_by_hand(alignment, rules)
    sign = [1.0 if p > q else -1.0 for p, q in pairs]
    worth = sign if rules.count == "num" else [p - q for p, q in pairs]
    soft = [resized(m).tolist() for m in masks]

    def total(values, mask):
        return sum(v * m for v, m in zip(values, mask, strict=True))

    accepted = [rules.gate == "none"] * len(masks)
    for p in set(clusters) if rules.gate != "none" else ():
        members = [i for i, c in enumerate(clusters) if c == p]
        if rules.gate == "union":
            verdict = total(worth, resized(masks[members].any(0)).tolist()) > 0
            for i in members:
                accepted[i] = verdict
            continue
        by = [a - b for a, b in pairs] if rules.order == "margin" else [float(s > 0) for s in sign]
        members = [i for i in found.order.tolist() if clusters[i] == p]
        means = [total(by, soft[i]) / (sum(soft[i]) + 1e-6) for i in members]
        assert rules.gate != "growth" or all(a > b - 1e-5 for a, b in pairwise(means))
        cover, seen = [0.0] * GRID**2, torch.zeros(SIZE, SIZE, dtype=torch.bool)
        for i in members:
            if rules.gate == "each":
                added = soft[i]
            elif rules.overlap == "soft":
                added = [m * (1 - c) for m, c in zip(soft[i], cover, strict=True)]
            else:
                added = resized(masks[i] & ~seen).tolist()
            margin = total(worth, added)
            accepted[i] = margin > 0 if abs(margin) > ROUNDING else bool(found.accepted[i])
            if accepted[i]:
                cover = [c + a for c, a in zip(cover, added, strict=True)]
                seen |= masks[i]
    return accepted


def consistent_by_hand(target, points, masks, clusters: list[int], rules: Rules) -> list[bool]:
    features = target.double().tolist()

    def cosine(a, b):
        norms = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
        value = sum(v * w for v, w in zip(a, b, strict=True)) / norms
        return max(value, 0.0) if rules.relu and rules.consistency != "prototype" else value

    found = []
    for x, y in points.tolist():
        values = []
        for p in range(max(clusters) + 1):
            members = [i for i, c in enumerate(clusters) if c == p]
            area = resized(masks[members].any(0)).tolist()
            if rules.consistency == "points":
                area = [0.0] * GRID**2
                for i in members:
                    area[points[i, 1] * GRID + points[i, 0]] = 1.0
            own = features[y * GRID + x]
            if sum(area) == 0:
                value = 0.0
            elif rules.consistency == "prototype":
                columns = zip(*features, strict=True)
                value = cosine(own, [sum(a * v for a, v in zip(area, column, strict=True)) for column in columns])
            else:
                value = sum(a * cosine(own, f) for a, f in zip(area, features, strict=True)) / sum(area)
            nearest = min(math.dist((x, y), points[i].tolist()) for i in members)
            values.append(value / (nearest or 1) if rules.distance else value)
        found.append(values.index(max(values)))
    kept = [f == c for f, c in zip(found, clusters, strict=True)]
    if rules.majority:
        for p in set(clusters):
            members = [i for i, c in enumerate(clusters) if c == p]
            if sum(kept[i] for i in members) * 2 < len(members):
                for i in members:
                    kept[i] = False
    return kept


SWITCHES = [
    {},
    {"reading": "paper"},
    {"clusters": "strong"},
    {"gate": "each"},
    {"gate": "union"},
    {"gate": "none"},
    {"count": "sum"},
    {"pivot": "sum"},
    {"pivot": "middle"},
    {"pivot": "negative"},
    {"pivot": "aligned"},
    {"consistency": "prototype"},
    {"consistency": "points"},
    {"distance": False},
    {"majority": False},
    {"order": "ratio"},
    {"overlap": "exact"},
    {"prompt": "center"},
    {"relu": True},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("seed", [2, 3])
def test_every_step_follows_its_equation(switches, seed):
    rules = Rules(**switches)
    target, alignment, logits = scene(seed)
    outcome = segment(target, alignment, logits, SIZE, rules)
    masks, pixels = full_size(logits), prompts(alignment.points, GRID, SIZE, rules).tolist()
    clusters = clusters_by_hand(masks, pixels, rules.clusters == "strong")
    if rules.clusters == "strong":  # scipy numbers these in another order
        first = {label: clusters.index(label) for label in clusters}
        assert [outcome.clusters.tolist()[first[c]] for c in clusters] == outcome.clusters.tolist()
        clusters = outcome.clusters.tolist()
    assert outcome.clusters.tolist() == clusters
    assert outcome.gating.accepted.tolist() == accepted_by_hand(alignment, masks, clusters, rules, outcome.gating)
    assert outcome.consistent.tolist() == consistent_by_hand(target, alignment.points, masks, clusters, rules)
    chosen = outcome.gating.accepted & outcome.consistent
    if chosen.any():
        assert not outcome.fallback and outcome.chosen.equal(chosen)
        assert outcome.mask.equal(masks[chosen].any(0))


def test_the_scenes_say_something():
    outcomes = [segment(*scene(seed), SIZE, Rules(majority=False)) for seed in (2, 3)]
    for verdicts in (torch.cat([o.gating.accepted for o in outcomes]), torch.cat([o.consistent for o in outcomes])):
        assert verdicts.any() and not verdicts.all()
    assert all(1 < o.clusters.max() < N - 2 for o in outcomes)


def test_no_point_gives_an_empty_mask():
    target, alignment, _ = scene(0, n=0)
    for clusters in ("weak", "kmeans"):
        outcome = segment(target, alignment, torch.zeros(0, SIDE, SIDE), SIZE, Rules(clusters=clusters))
        assert outcome.mask.shape == (SIZE, SIZE) and not outcome.mask.any() and not outcome.fallback


@pytest.mark.parametrize("value", [-1.0, torch.nan])
def test_masks_without_a_pixel_give_an_empty_mask(value):
    target, alignment, logits = scene(0)
    outcome = segment(target, alignment, logits.fill_(value), SIZE, Rules())
    assert outcome.fallback and not outcome.mask.any()
    assert outcome.clusters.tolist() == list(range(N)) and not outcome.gating.accepted.any()
    assert not segment(target, alignment, logits, SIZE, Rules(fallback=False)).fallback


def test_the_fallback_takes_the_best_cluster_of_those_that_passed_one_gate():
    target, alignment, logits = scene(0)
    hostile = Alignment(
        mean=alignment.mean * 0.01,
        max=alignment.max,
        negative=alignment.negative + 1,
        select=alignment.select,
        points=alignment.points,
    )
    outcome = segment(target, hostile, logits, SIZE, Rules())
    assert outcome.fallback and outcome.chosen.sum() == 1 and not outcome.gating.accepted.any()
    passed = zip(outcome.gating.score.tolist(), outcome.consistent.tolist(), strict=True)
    candidates = [score if consistent else 0.0 for score, consistent in passed]
    assert outcome.chosen[candidates.index(max(candidates))]
    assert outcome.mask.equal(full_size(logits)[outcome.chosen][0])
    assert not segment(target, hostile, logits, SIZE, Rules(fallback=False)).mask.any()


def test_a_mask_that_is_covered_already_is_not_accepted():
    _, alignment, _ = scene(0)
    inside = torch.full((1, SIDE, SIDE), -1.0)
    inside[:, 2:14, 2:14] = 1
    good = Alignment(alignment.mean + 5, alignment.max, alignment.negative, alignment.select, alignment.points[:5])
    bits = on_grid(inside.expand(5, -1, -1), GRID, SIZE)
    gating = gate(bits, torch.zeros(5, dtype=torch.int64), *scores(good, Rules()), SIZE, Rules(overlap="exact"))
    assert gating.accepted.tolist() == [True, False, False, False, False]  # the first of equal masks
    assert gating.margin[1:].eq(0).all()


def test_masks_are_judged_cluster_by_cluster_the_best_first():
    mean, clusters = torch.tensor([0.1, 0.5, 0.3, 0.5, 0.9]), torch.tensor([0, 1, 0, 0, 1])
    assert ranked(mean, clusters).tolist() == [3, 2, 0, 4, 1]
    assert ranked(mean[:0], clusters[:0]).tolist() == []


def test_half_of_a_cluster_keeps_it_and_less_loses_all_its_points():
    looks = torch.eye(2)
    target = looks[torch.tensor([0, 1, 1, 1, 0, 0, 0, 0, 0])]  # on a 3 x 3 grid
    points = torch.tensor([[0, 0], [1, 0], [2, 0], [0, 1], [1, 1]])
    clusters = torch.tensor([0, 0, 0, 1, 1])
    areas = torch.zeros(2, 9, dtype=torch.float64)
    areas[0, 0] = areas[1, 3] = 1  # where a cluster's masks lie: one looks like looks[0], the other like looks[1]
    alone = self_consistent(target, points, clusters, areas, Rules(distance=False, majority=False))
    assert alone.tolist() == [True, False, False, True, False]
    judged = self_consistent(target, points, clusters, areas, Rules(distance=False))
    assert judged.tolist() == [False, False, False, True, False]


def test_kmeans_parts_distant_points_and_repeats_itself():
    corners = torch.cat([torch.cartesian_prod(*[torch.tensor([0, 30, 60])] * 2), torch.tensor([[90, 90]])])  # [10, 2]
    points = (corners[:, None] + torch.tensor([[0, 0], [1, 0], [0, 1]])).flatten(0, 1)
    rules = Rules(clusters="kmeans")
    labels = cluster(torch.eye(30, dtype=torch.bool), points, rules)
    assert labels.equal(cluster(torch.eye(30, dtype=torch.bool), points, rules))
    assert sorted(labels.unique().tolist()) == list(range(int(labels.max()) + 1))
    assert all(len(group.unique()) == 1 for group in labels.view(10, 3))
    assert cluster(torch.eye(3, dtype=torch.bool), points[:3], rules).max() <= 2
