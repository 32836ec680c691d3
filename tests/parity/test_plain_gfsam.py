"""The plain GF-SAM that speed is measured against makes the recorded decisions too."""

import importlib.util

import numpy as np
import pytest
import torch
from gfsam import NOISE, SIZE, unpack

from tests.support.places import ROOT, shared

BENCH = ROOT / "bench" / "plain_gfsam.py"
FILES = ["c08_grid18_1shot", "c11_noisy_5shot", "c13_samdecoder_1shot", "d03_empty_reference", "d08_absent_class"]
"""One of each kind; the others take seconds each at full resolution and pass as well."""


@pytest.mark.parametrize("name", FILES)
def test_recorded_decisions(name):
    path = shared(f"golden/gfsam/{name}.npz")
    spec = importlib.util.spec_from_file_location("plain_gfsam", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    golden = dict(np.load(path, allow_pickle=False))
    full = torch.zeros(0, SIZE, SIZE)
    if "mask_index" in golden:  # where the reference stopped for want of points, nothing else is recorded
        full = unpack(golden["mask_bits_unique"])[golden["mask_index"]]

    def decode(prompts: torch.Tensor) -> torch.Tensor:
        np.testing.assert_array_equal(prompts.numpy(), golden["prompts_xy"])
        return full.to(torch.int8) * 2 - 1

    tokens, references = (torch.from_numpy(golden[key]) * float(golden["scale"]) for key in ("target_feat", "ref_feat"))
    found = module.segment(tokens, references, unpack(golden["ref_mask_bits"]).byte(), decode, SIZE)
    np.testing.assert_array_equal(found.points.numpy(), golden["points_xy"])
    if len(found.points) == 0:
        assert not found.mask.any()
        return
    np.testing.assert_array_equal(found.clusters.numpy(), golden["cluster_weak"])
    np.testing.assert_array_equal(found.consistent.numpy(), golden["P_sc"] == 1)
    assert found.fallback == bool(golden["fallback_used"])
    doubtful = np.abs(golden["P_plus_margin_f64"]) < NOISE
    differ = (found.mask ^ unpack(golden["final_mask_bits"])) & ~full[torch.from_numpy(doubtful)].any(0)
    assert not differ.any(), f"{int(differ.sum())} pixels differ"
