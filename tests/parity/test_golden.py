"""Recorded runs of the reference implementations, reproduced by what this program ships."""

import fnmatch

import moco
import pytest

CHECKS = {
    "moco_2rank_*": moco.check,
}
"""Pattern of file stems -> check(path), which raises AssertionError where we differ. The first match counts."""

LATER = {
    "training-free segmentation": ("c[0-9][0-9]_*", "d[0-9][0-9]_*", "ep_*", "results", "per_class", "summary"),
    "episodes": ("episodes", "*_[15]shot"),
    "meta-training and evaluation": ("bam*", "msanet*", "pfenet*", "folds", "metrics", "misc"),
}
"""Families of files whose checks come with the parts that they belong to."""


def test_golden(golden, strict):
    stem = golden.name.split(".")[0]
    for pattern, check in CHECKS.items():
        if fnmatch.fnmatchcase(stem, pattern):
            check(golden)
            return
    for family, patterns in LATER.items():
        if any(fnmatch.fnmatchcase(stem, pattern) for pattern in patterns):
            pytest.skip(f"no check yet: belongs to a later part ({family})")
    message = f"no test knows {golden.name}: add its check to CHECKS"
    (pytest.fail if strict else pytest.skip)(message)
