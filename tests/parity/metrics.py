"""The scores of recorded predictions, as HSNet's evaluator and PFENet's loop counted them."""

from pathlib import Path

import numpy as np

from fss.evaluate.metrics import counts, scores, total

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def check(path: Path) -> None:
    """Reproduce one file; AssertionError says which figure differs."""
    golden = dict(np.load(path, allow_pickle=False))
    classes = len(golden["hsnet_iou_fg"])  # of the data set, numbered from 0
    novel = len(golden["pfenet_class_iou"])
    fold = int(golden["fold"])
    ids = range(fold * novel, (fold + 1) * novel)  # contiguous, as on PASCAL
    if not set(golden["class_id0"].tolist()) <= set(ids):
        ids = range(fold, classes, classes // novel)  # interleaved, as on COCO
    rows, start = [], 0
    for class_id, (height, width) in zip(golden["class_id0"].tolist(), golden["sizes"].tolist(), strict=True):
        pixels = slice(start, start := start + height * width)
        prediction, truth = (golden[f"{name}_flat"][pixels].reshape(height, width) for name in ("pred", "label"))
        rows.append((class_id, counts(prediction, truth)))
    assert start == len(golden["pred_flat"])

    tables = np.stack([table for _, table in rows])  # [episodes, 2, 2]
    for place, name in enumerate(("inter", "union")):
        close(tables[:, :, place], golden[f"episode_{name}"], f"episode_{name}")
        sums = total(rows, range(classes))
        ours = np.stack([sums[class_id][:, place] for class_id in range(classes)], axis=1)  # [2, classes]
        close(ours, golden[f"hsnet_{name}_buf"], f"hsnet_{name}_buf")

    found = scores(total(rows, ids))
    everywhere = scores(total(rows, range(classes))).per_class
    per_class = [found.per_class[class_id] for class_id in sorted(found.per_class)]
    close([everywhere[class_id] for class_id in range(classes)], golden["hsnet_iou_fg"], "hsnet_iou_fg")
    close(100 * found.miou, golden["hsnet_miou_pct"], "hsnet_miou_pct")
    close(100 * found.fb_iou, golden["hsnet_fbiou_pct"], "hsnet_fbiou_pct")
    close(per_class, golden["pfenet_class_iou"], "pfenet_class_iou")
    close(found.miou, golden["pfenet_miou"], "pfenet_miou")
    close(found.fb_iou, golden["pfenet_fbiou"], "pfenet_fbiou")
    close([found.bg_iou, found.fg_iou], golden["pfenet_iou_bg_fg"], "pfenet_iou_bg_fg")


def close(ours, theirs: np.ndarray, what: str) -> None:
    """Within the tolerance of the recorded files."""
    np.testing.assert_allclose(ours, theirs, **TOLERANCE, err_msg=what)
