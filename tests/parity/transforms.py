"""The test transform of PFENet and BAM as recorded: resized pictures, and the regions that images come to fill."""

from collections.abc import Mapping

import numpy as np

from fss.data.transforms import Frame, fit_image

MEAN = 255 * np.array([0.485, 0.456, 0.406])
STD = 255 * np.array([0.229, 0.224, 0.225])
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def check_resize(golden: Mapping[str, np.ndarray]) -> None:
    """Every resize<n> of a file like misc.npz, and its table of sizes."""
    for name in sorted({name.split("/")[0] for name in golden if name.startswith("resize") and "/" in name}):
        image, label, expected = (golden[f"{name}/{what}"] for what in ("in_img", "in_lab", "out_img"))
        fitted, frame = fit_image(image, len(expected), "compat")
        standardised = (expected.astype(np.float64) - MEAN) / STD  # [S, S, 3]
        np.testing.assert_allclose(fitted.permute(1, 2, 0).numpy(), standardised, **TOLERANCE, err_msg=name)
        np.testing.assert_array_equal(frame.mask(label), golden[f"{name}/out_lab"], err_msg=name)

    fits, regions = (golden.get(f"resize_table_{what}", np.empty((0, 3))).tolist() for what in ("in_hw_size", "out_hw"))
    for (height, width, size), region in zip(fits, regions, strict=True):
        frame = Frame.fit(height, width, size, "compat")
        assert [frame.valid_h, frame.valid_w] == region, f"{height} x {width} into {size}: {frame}, recorded {region}"
