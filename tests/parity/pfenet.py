"""PFENet's forward pass and losses on recorded features, by the shipped maps, prototype and decoder."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fss.nn.fem import FeatureEnrichment, concat_middle_blocks, inner_loss, segmentation_loss
from fss.nn.region import downsample_mask, guided_region_map, masked_average, resize

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
OURS = {
    "init_merge.{i}.0": "merge.{i}",
    "alpha_conv.{i}.0": "interact.{i}",
    "beta_conv.{i}.0": "refine.{i}.0",
    "beta_conv.{i}.2": "refine.{i}.2",
    "inner_cls.{i}.0": "inner.{i}.0",
    "inner_cls.{i}.3": "inner.{i}.3",
    "res1.0": "join",
    "res2.0": "smooth.0",
    "res2.2": "smooth.2",
    "cls.0": "classify.0",
    "cls.3": "classify.3",
}
"""Layer names of the recorded state dict and of FeatureEnrichment; {i} is a level of the pyramid."""


def translate(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The recorded parameters of enrichment module and decoder under our names."""
    names = {old.format(i=i): new.format(i=i) for old, new in OURS.items() for i in range(levels)}
    split = {name: name.rsplit(".", 1) for name in state}
    return {f"{names[layer]}.{kind}": state[name] for name, (layer, kind) in split.items() if layer in names}


def check(path: Path) -> None:
    """Reproduce one file; AssertionError says what differs and by how much."""
    golden = {name: torch.from_numpy(array) for name, array in np.load(path, allow_pickle=False).items()}
    state = {name.removeprefix("sd/"): tensor for name, tensor in golden.items() if name.startswith("sd/")}
    bins = golden["bins"].tolist()
    b, k = golden["s_y"].shape[:2]
    fem = FeatureEnrichment(len(state["init_merge.0.0.weight"]), maps=1, bins=bins, dropout=0.0)
    fem.load_state_dict(translate(state, len(bins)))

    masks = downsample_mask(golden["s_y"].flatten(0, 1), golden["s3"].shape[3:]).unflatten(0, (b, k))  # [B, K, 1, h, w]
    close(golden["s3"][:, 0] * masks[:, 0], golden["layer4_support_input_shot0"], "masked block 3")
    prior = torch.stack(
        [guided_region_map(golden["q4"], golden["s4"][:, shot] * masks[:, shot], masks[:, shot]) for shot in range(k)]
    ).mean(0)  # [B, 1, h, w]
    close(prior, golden["prior"], "prior mask")

    blocks_2_3 = concat_middle_blocks(golden["s2"].flatten(0, 1), golden["s3"].flatten(0, 1))
    support = F.relu(F.conv2d(blocks_2_3, state["down_supp.0.weight"]))
    prototype = masked_average(support, masks.flatten(0, 1)).unflatten(0, (b, k)).mean(1)  # [B, D]
    close(prototype, golden["supp_proto"], "prototype")

    query = F.relu(F.conv2d(concat_middle_blocks(golden["q2"], golden["q3"]), state["down_query.0.weight"]))
    with torch.no_grad():
        logits, inner = fem(query, prototype, prior)
    close(logits, golden["cls_out"], "logits")
    for level, ours in enumerate(inner):
        close(ours, golden[f"inner_out_{level}"], f"inner logits {level}")
    upsampled = resize(logits, golden["y"].shape[1:])
    close(upsampled, golden["out_upsampled"], "upsampled logits")
    close(segmentation_loss(logits, golden["y"]), golden["train_main_loss"], "main loss")
    close(inner_loss(inner, golden["y"]), golden["train_aux_loss"], "inner loss")
    decided = upsampled.diff(dim=1)[:, 0].abs() > 1e-4  # [B, S, S], far enough from a draw
    differ = decided & (upsampled.argmax(1) != golden["train_argmax"])
    assert not differ.any(), f"{differ.sum()} predictions differ"


def close(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Within the tolerance of the recorded files."""
    assert ours.shape == theirs.shape, f"{what}: {tuple(ours.shape)} for {tuple(theirs.shape)}"
    np.testing.assert_allclose(ours.detach().numpy(), theirs.numpy(), **TOLERANCE, err_msg=what)
