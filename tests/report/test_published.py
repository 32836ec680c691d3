"""The papers' figures: typed, consistent with themselves, and found for the right cell alone."""

from dataclasses import replace

import pytest
import yaml

from fss.datasets import DATASETS
from fss.methods.mshnet import MSHNet, MSHNetConfig
from fss.report.published import PUBLISHED, Cell, neighbours, published, published_recall

QGNET = Cell(method="qgnet", scheme="pascal", fold=3, shots=5, backbone="resnet50", size=473)


def rows() -> list[dict]:
    return yaml.safe_load(PUBLISHED.read_text())["cells"]


def test_every_cell_is_complete_and_stands_once():
    keys = [
        tuple(row.get(k) for k in ("method", "ablation", "data", "backbone", "size", "shots", "metric"))
        for row in rows()
    ]
    assert len(set(keys)) == len(keys)
    for row in rows():
        assert row["data"] in DATASETS and row["metric"] in ("miou", "fb_iou"), row
        assert row["shots"] in (1, 5) and row["source"], row
        assert len(row.get("folds", [])) in (0, DATASETS[row["data"]].folds), row


def test_means_are_those_of_the_folds_but_for_rounding_and_two_that_the_papers_print_otherwise():
    odd = {("msanet", "resnet101", 69.13), ("gfsam", "dinov2_vitl14", 72.1)}
    for row in rows():
        if "folds" in row and (row["method"], row["backbone"], row["mean"]) not in odd:
            mean = sum(row["folds"]) / len(row["folds"])
            assert row["mean"] == pytest.approx(mean, abs=0.101), row


def test_a_cell_finds_the_papers_figure_of_its_fold():
    found = published(QGNET, "miou")
    assert (found.fold(3), found.mean, found.source) == (61.6, 62.8, "QGNet, Table I")
    assert published(QGNET, "fb_iou").fold(3) is None and published(QGNET, "fb_iou").mean == 73.9
    vgg = published(replace(QGNET, backbone="vgg16_bn", shots=1), "miou")
    assert vgg.fold(0) == 58.6
    msanet = published(replace(QGNET, method="msanet", scheme="coco"), "miou")  # the paper names no size
    assert msanet.fold(1) == 60.89


@pytest.mark.parametrize(
    "scheme, shots, fold, figure",
    [
        ("lvis", 5, 9, 48.4),
        ("pascal_part", 1, 1, 59.6),
        ("isaid", 1, 2, 51.2),
        ("isic", 5, 0, 55.2),
    ],
)
def test_the_further_data_sets_of_gfsam(scheme, shots, fold, figure):
    cell = Cell(method="gfsam", scheme=scheme, fold=fold, shots=shots, backbone="dinov2_vitl14", size=1024)
    assert published(cell, "miou").fold(fold) == figure


@pytest.mark.parametrize(
    "change",
    [
        {"scheme": "interleaved"},
        {"scheme": "coco_contiguous"},
        {"backbone": "resnet18"},
        {"backbone": None},
        {"size": 225},
        {"shots": 2},
        {"method": "prototype"},
        {"scheme": "fss"},
    ],
)
def test_a_cell_that_no_paper_has_finds_nothing(change):
    assert published(replace(QGNET, **change), "miou") is None


def test_ablations_stand_beside_the_main_result_and_never_for_it():
    one_shot = replace(QGNET, shots=1)
    found = neighbours(one_shot, "miou")
    assert published(one_shot, "miou").ablation is None
    assert {row.ablation for row in found if row.method == "qgnet"} >= {None, "global contrast only"}
    assert published(replace(one_shot, ablation="prior_map off"), "miou") is None
    alone = replace(one_shot, method="mshnet", ablation=MSHNet(MSHNetConfig(similarities="cosine")).ablation())
    assert published(alone, "miou").fold(3) == 55.4 and published(replace(alone, ablation=""), "miou").fold(3) == 62.4
    assert found[0].method == "qgnet" and {"pfenet", "mshnet"} <= {row.method for row in found}
    assert all(row.size in (None, 473) and row.backbone == "resnet50" and row.shots == 1 for row in found)


def test_recall_of_the_paper_falls_with_the_threshold():
    paper = published_recall()
    assert paper.thresholds == tuple(t / 10 for t in range(1, 10))
    for values in paper.maps.values():
        assert len(values) == 9 and list(values) == sorted(values, reverse=True)
