"""The plain MSANet that speed is measured against gives the recorded values too."""

import importlib.util

import pytest
import torch
from msanet import Recorded, linear
from pfenet import close
from torch.nn import functional as F

from fss.nn.fem import segmentation_loss
from fss.nn.multisim import Attention
from fss.nn.region import resize
from tests.support.places import ROOT, shared

BENCH = ROOT / "bench" / "plain_msanet.py"


@pytest.mark.parametrize("name", ["msanet_1shot.npz", "msanet_5shot.npz"])
def test_plain(name):
    path = shared(f"golden/meta/{name}")
    spec = importlib.util.spec_from_file_location("plain_msanet", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recorded = Recorded(path)
    golden, state = recorded.golden, recorded.state
    attention = Attention(len(state["init_merge.0.weight"]), 0.0)
    attention.load_state_dict({n.removeprefix("gam."): linear(t) for n, t in state.items() if n.startswith("gam.")})
    plain = module.PlainMSANet(
        recorded.learner(),
        lambda x: F.relu(F.conv2d(x, state["down_query.0.weight"])),
        lambda x: F.relu(F.conv2d(x, state["down_supp.0.weight"])),
        attention,
    )
    names = sorted(name.removeprefix("qf/") for name in golden if name.startswith("qf/"))
    query = module.Seen(golden["q2"], golden["q3"], golden["q4"], [golden[f"qf/{n}"] for n in names])
    supports = [
        module.Seen(*(golden[f"s{i}"][:, shot] for i in (2, 3, 4)), [golden[f"sf/{n}"][:, shot] for n in names])
        for shot in range(recorded.k)
    ]
    excluded = golden["cat_idx"][:, None] == torch.arange(golden["base_logits"].shape[1] - 1)
    with torch.no_grad():
        scores, meta = plain.forward(query, supports, golden["s_y"], golden["base_logits"], None)
        learned, own = plain.forward(query, supports, golden["s_y"], golden["base_logits"], excluded)
    close(meta, golden["meta_logits"], "meta logits")
    close(resize(scores, golden["final_out"].shape[2:]), golden["final_out"], "scores")
    close(segmentation_loss(learned, golden["y"]), golden["train/main_loss"], "main loss")
    close(segmentation_loss(own, golden["y"]), golden["train/aux1_meta_loss"], "meta loss")
