"""The analysis of masks against loops over pixels, and the command on two ranks."""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from fss.data.episodes import Policy, evaluation_episodes
from fss.evaluate.scoring import Scoring
from fss.jobs.mask_analysis import MEASURES, mask_rows, of_masks, table
from launch.mask_analysis import main
from shards.read import ShardSet
from tests.support.contexts import joined
from tests.support.labelled import rectangles
from tests.support.ranks import on_ranks
from tests.support.tiny_gfsam import GRID, SIZE, STAND_INS, tiny

SCORING = Scoring(size=SIZE, resize="squash", resolution=SIZE)


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    return rectangles(tmp_path_factory.mktemp("masks") / "set", [1, 2, 3, 4] * 5).folder


def iou(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_every_figure_against_sets_of_pixels(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 8, 8, generator=generator)
    truth = torch.randint(0, 3, (32, 32), generator=generator, dtype=torch.uint8)
    truth[truth == 2] = 255
    points = torch.randint(0, 32, (6, 2), generator=generator)

    def those(where: np.ndarray) -> set:
        return {(y, x) for y, x in np.argwhere(where).tolist() if truth[y, x] != 255}

    masks = [those(m.numpy()) for m in interpolate(logits[None], (32, 32), mode="bilinear")[0] > 0]
    inside = those(truth.numpy() == 1)
    at = [(y, x) for x, y in points.tolist()]
    whole = set().union(*masks)
    fore = set().union(*(m for m, p in zip(masks, at, strict=True) if p in inside))
    back = set().union(*(m for m, p in zip(masks, at, strict=True) if truth[p] == 0))
    wrong, right = (sum(p in fore and (p in inside) == on for p in at) for on in (False, True))
    assert of_masks(logits, points, truth) == pytest.approx(
        {
            "best_iou": max(iou(m, inside) for m in masks),
            "all_iou": iou(whole, inside),
            "all_recall": len(whole & inside) / len(inside),
            "all_precision": len(whole & inside) / len(whole),
            "error_iou": iou(fore, back),
            "error_rate": wrong / max(wrong + right, 1),
            "error_points": wrong,
        }
    )


def test_no_point_and_no_object_are_zeros():
    none = of_masks(torch.zeros(0, 8, 8), torch.zeros(0, 2, dtype=torch.int64), torch.ones(32, 32, dtype=torch.uint8))
    empty = of_masks(torch.ones(1, 8, 8), torch.zeros(1, 2, dtype=torch.int64), torch.zeros(32, 32, dtype=torch.uint8))
    assert set(none.values()) == set(empty.values()) == {0}


def analysed(folder: Path) -> list[dict]:
    context = joined()
    try:
        shards = ShardSet(folder)
        policy = Policy(draw="round_robin", min_area=0)
        episodes = evaluation_episodes(shards.manifest, (2, 3), policy, 1, 6, (0, 1))
        return mask_rows(tiny(), shards, episodes, SCORING, context)
    finally:
        context.close()


def test_two_ranks_find_what_one_does(packed):
    alone = analysed(packed)
    assert len(alone) == 12 and all(row["best_iou"] <= 1 and row["points"] > 0 for row in alone)
    assert {row["class"] for row in alone} == {2, 3}
    for rank in on_ranks(2, analysed, packed):
        assert rank == alone
    assert len(table(alone).rows) == len(MEASURES)


def test_the_command(packed, tmp_path, capsys):
    words = ["--method.sam", "vit_t", "--method.size", str(SIZE), "--method.dino_size", str(14 * GRID)]
    words += ["--data.shards", str(packed), "--eval.protocol", "default", "--eval.episodes", "4", "--eval.seeds", "[0]"]
    words += ["--run.device", "cpu", "--out", str(tmp_path / "masks")]
    with mock.patch.multiple("fss.methods.gfsam", **STAND_INS):
        assert main(words) == 0
    assert "Masks that GF-SAM merges" in capsys.readouterr().out
    found = json.loads((tmp_path / "masks" / "masks.json").read_text())
    assert len(found["rows"]) == 4 and found["shots"] == "1"
    assert (tmp_path / "masks" / "masks.md").read_text().count("IoU of the best single mask") == 1
    assert main([*words, "--method", "prototype"]) != 0
