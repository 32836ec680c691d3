"""GF-SAM's alignment, graph, gates and merge on recorded features and masks, by the shipped functions."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fss.nn.alignment import Alignment, align, encode_support, prompts, unit_features
from fss.nn.gfsam_rules import Rules
from fss.nn.mask_logits import on_grid, shares, union
from fss.nn.pointgraph import (
    Outcome,
    cluster,
    cluster_areas,
    grow,
    scores,
    segment,
    similarity_to_clusters,
)

SIZE = 1024
MAPS = {"rtol": 1e-4, "atol": 2e-5}
NOISE = 1e-4  # decisions of mask growth on a smaller margin are the reference's rounding
RULES = Rules()


def unpack(bits: np.ndarray) -> Tensor:
    """Packed masks [..., 131072] -> bool [..., 1024, 1024]."""
    return torch.from_numpy(np.unpackbits(bits, axis=-1)).unflatten(-1, (SIZE, SIZE)).bool()


def check(path: Path) -> None:
    """Reproduce one file; AssertionError says what differs and by how much."""
    golden = dict(np.load(path, allow_pickle=False))
    target, alignment = check_alignment(golden)
    if len(alignment.points) == 0:  # where the reference raises; nothing else is recorded
        empty = segment(target, alignment, torch.zeros(0, 256, 256), SIZE, RULES)
        assert not empty.mask.any() and not empty.fallback, "no points, yet a mask"
        return
    logits = (unpack(golden["mask_bits_unique"]).to(torch.int8) * 2 - 1)[golden["mask_index"]]  # full resolution
    outcome = segment(target, alignment, logits, SIZE, RULES)
    check_graph(golden, target, alignment, logits)
    check_gates(golden, alignment, logits, outcome)
    check_mask(golden, outcome, logits)


def check_alignment(golden: dict) -> tuple[Tensor, Alignment]:
    """Maps, number and order of points, and prompts; gives the target's features and the alignment."""
    scale = float(golden["scale"])
    target = unit_features(torch.from_numpy(golden["target_feat"]) * scale, RULES)
    tokens = [unit_features(torch.from_numpy(x) * scale, RULES) for x in golden["ref_feat"]]
    masks = unpack(golden["ref_mask_bits"]).byte()
    references = [encode_support(features, mask[None], RULES) for features, mask in zip(tokens, masks, strict=True)]
    alignment = align(target, references, RULES)
    theirs = {"mean": "S_pos_mean", "max": "S_pos_max", "negative": "S_neg_mean", "select": "S_select"}
    for name, recorded in theirs.items():
        np.testing.assert_allclose(getattr(alignment, name).numpy(), golden[recorded], **MAPS, err_msg=recorded)
    np.testing.assert_array_equal(alignment.points.numpy(), golden["points_xy"], err_msg="points in order")
    pixels = prompts(alignment.points, alignment.grid, SIZE, RULES)
    np.testing.assert_array_equal(pixels.numpy(), golden["prompts_xy"], err_msg="prompts")
    return target, alignment


def check_graph(golden: dict, target: Tensor, alignment: Alignment, logits: Tensor) -> None:
    """Both kinds of components, the scores of positions, and the similarity of every cell to every cluster."""
    x, y = torch.from_numpy(golden["prompts_xy"]).long().unbind(1)
    covers = logits[:, y, x] > 0
    for kind in ("weak", "strong"):
        ours = cluster(covers, alignment.points, Rules(clusters=kind))
        np.testing.assert_array_equal(ours.numpy(), golden[f"cluster_{kind}"], err_msg=f"{kind} components")
    for ours, name in zip(scores(alignment, RULES), ("pos_map", "neg_map"), strict=True):
        np.testing.assert_allclose(ours.numpy(), golden[name].flatten(), **MAPS, err_msg=name)
    clusters = torch.from_numpy(golden["cluster_weak"]).long()
    areas = cluster_areas(on_grid(logits, alignment.grid, SIZE), clusters, SIZE)
    cells = torch.cartesian_prod(*[torch.arange(alignment.grid)] * 2).flip(1)  # (x, y), row by row
    ours = similarity_to_clusters(target, cells, clusters, areas, RULES).T.unflatten(1, (alignment.grid,) * 2)
    np.testing.assert_allclose(ours.numpy(), golden["union_sim"], **MAPS, err_msg="similarity to clusters")


def check_gates(golden: dict, alignment: Alignment, logits: Tensor, outcome: Outcome) -> None:
    """P+ in the recorded order where it is no rounding, our order but for ties, and P sc.

    The reference sorts the masks of a cluster by an unstable sort; equal masks are common here.
    """
    np.testing.assert_array_equal(outcome.clusters.numpy(), golden["cluster_weak"], err_msg="clusters")
    score = torch.from_numpy(golden["mask_score"])
    for p in outcome.clusters.unique():
        inside = outcome.gating.order[outcome.clusters[outcome.gating.order] == p]
        assert (score[inside].diff() < 1e-5).all(), f"order of growth in cluster {p}"

    order = torch.from_numpy(np.lexsort((golden["rank_in_cluster"], golden["cluster_weak"])))
    bits = on_grid(logits, alignment.grid, SIZE)
    positive, negative = scores(alignment, RULES)
    polarity = torch.where(positive > negative, 1.0, -1.0)
    margin, last = grow(bits, shares(bits, SIZE), outcome.clusters, order, polarity, SIZE, RULES)
    recorded = golden["P_plus_margin_f64"]
    np.testing.assert_allclose(margin.numpy(), recorded, rtol=1e-4, atol=1e-3, err_msg="margins of growth")
    np.testing.assert_allclose(last.numpy(), golden["cls_score"], rtol=1e-4, atol=1e-3, err_msg="scores of clusters")
    decided = np.abs(recorded) >= NOISE
    np.testing.assert_array_equal((margin > 0).numpy()[decided], golden["P_plus"][decided] == 1, err_msg="P+")
    np.testing.assert_array_equal(outcome.consistent.numpy(), golden["P_sc"] == 1, err_msg="P sc")


def check_mask(golden: dict, outcome: Outcome, logits: Tensor) -> None:
    """The final mask: exact given their decisions; with ours it differs only inside masks that rounding decides on."""
    assert outcome.fallback == bool(golden["fallback_used"]), f"fallback: {outcome.fallback}"
    theirs = unpack(golden["final_mask_bits"])
    if not outcome.fallback:
        given = torch.from_numpy((golden["P_plus"] == 1) & (golden["P_sc"] == 1))
        assert union(logits, given.nonzero()[:, 0], SIZE).equal(theirs), "union of the masks that they chose"
    kin = np.stack([golden["cluster_weak"], golden["mask_score"]], 1)
    _, group, members = np.unique(kin, axis=0, return_inverse=True, return_counts=True)
    tied = members[group.ravel()] > 1  # of two that tie, the order is as arbitrary
    doubtful = torch.from_numpy((np.abs(golden["P_plus_margin_f64"]) < NOISE) | tied)
    differ = (outcome.mask ^ theirs) & ~(logits[doubtful] > 0).any(0)
    assert not differ.any(), f"final mask: {int(differ.sum())} pixels differ"
