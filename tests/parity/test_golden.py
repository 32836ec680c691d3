"""Recorded runs of the reference implementations, reproduced by what this program ships."""

import fnmatch
from pathlib import Path

import context
import episodes
import gfsam
import gfsam_real
import metrics
import moco
import msanet
import numpy as np
import pfenet
import pytest
import schedules
import transforms

from tests.support.places import stem


def check_misc(path: Path) -> None:
    """The small functions that the references share, those of them that a file records."""
    golden = dict(np.load(path, allow_pickle=False))
    checks = {
        "resize": transforms.check_resize,
        "poly_": schedules.check_poly,
        "ppm/": context.check_ppm,
        "aspp/": context.check_aspp,
    }
    recorded = {part for part in checks if any(name.startswith(part) for name in golden)}
    assert recorded, f"{path.name} records none of {', '.join(checks)}"
    for part in recorded:
        checks[part](golden)


CHECKS = {
    "moco_2rank_*": moco.check,
    "pfenet_*": pfenet.check,
    "bam_*": msanet.check,
    "msanet_*": msanet.check,
    "c[0-9][0-9]_*": gfsam.check,
    "d[0-9][0-9]_*": gfsam.check,
    "ep_*": gfsam_real.check,
    "results": gfsam_real.check_table,
    "summary": gfsam_real.check_summary,
    "per_class": gfsam_real.check_classes,
    "episodes": gfsam_real.check_episodes,
    "metrics*": metrics.check,
    "folds*": episodes.check_folds,
    "misc*": check_misc,
    "ppm*": check_misc,
    "aspp*": check_misc,
    "resize*": check_misc,
    "poly*": check_misc,
    "pascal_fold*shot": episodes.check_list,
    "coco_fold*shot": episodes.check_list,
    "isaid_fold*shot": episodes.check_list,
    "fss_*shot": episodes.check_list,
}
"""Pattern of file stems -> check(path), which raises AssertionError where we differ. The first match counts."""


def test_golden(golden, strict):
    for pattern, check in CHECKS.items():
        if fnmatch.fnmatchcase(stem(golden), pattern):
            try:
                check(golden)
            except pytest.skip.Exception as why:  # what it wants lies beside a developer's checkout
                (pytest.fail if strict else pytest.skip)(str(why))
            return
    message = f"no test knows {golden.name}: add its check to CHECKS"
    (pytest.fail if strict else pytest.skip)(message)
