"""MSHNet: training and evaluation compute the same, shots have no order, and every weight is trained."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fss.data.batch import EpisodeBatch
from fss.methods.base import StepContext
from fss.methods.mshnet import BLOCKS, MSHNet
from fss.nn.hyperrelation import object_positions
from tests.support.learning import (
    UNKNOWN,
    assert_all_learns,
    assert_bfloat16_is_near,
    assert_loss_falls,
    assert_ranks_learn_alike,
)
from tests.support.made_episodes import SIZE, episodes, image_by_image, seen
from tests.support.made_mshnet import ALONE, build


def in_evaluation(method: MSHNet, batch: EpisodeBatch) -> torch.Tensor:
    """`forward` as an evaluation has it, upsampled to the images."""
    with method._evaluation():
        return F.interpolate(method.forward(batch)[0], SIZE, mode="bilinear", align_corners=True)


@pytest.mark.parametrize("ablation", [{}, *ALONE, {"stem": "deep"}, {"backbone": "resnet50"}], ids=str)
def test_training_and_evaluation_compute_the_same_logits(mshnet_config, ablation):
    method = build(replace(mshnet_config, **ablation))
    batch = episodes(k=2)
    torch.testing.assert_close(image_by_image(method, batch), in_evaluation(method, batch), rtol=1e-4, atol=1e-5)


def test_one_module_takes_any_number_of_shots(mshnet_config):
    method = build(mshnet_config)
    query, supports = seen(method, episodes(b=1, k=5))
    for k in range(1, 6):
        batch = episodes(b=1, k=5)
        batch.support, batch.support_mask = batch.support[:, :k], batch.support_mask[:, :k]
        expected = in_evaluation(method, batch)
        torch.testing.assert_close(method.predict(query, supports[:k]).logits, expected, rtol=1e-4, atol=1e-5)


def test_similarities_are_those_of_every_residual_sum(mshnet_config):
    method = build(mshnet_config)
    batch = episodes(b=1, k=2)
    seen = [
        method.non_trainable["backbone"].layers(method.non_trainable["normalize"](image)).inner
        for image in (batch.query, batch.support[:, 1])
    ]
    found = method.similarities(batch)
    for i, block in enumerate(BLOCKS):
        query, support = (side[block] for side in seen)
        chosen = object_positions(batch.support_mask[:, 1], query[0].shape[2:])[0]
        assert found[i]["cosine"].shape[1:3] == (2, 2), "2 shots, 2 layers"
        for layer in range(2):
            x, y = (side[layer][0].flatten(1).T for side in (query, support))
            cosine = F.cosine_similarity(x[:, None], y[chosen][None], dim=2).clamp(min=0).mean(1)
            torch.testing.assert_close(found[i]["cosine"][0, 1, layer].flatten(), cosine, rtol=1e-3, atol=1e-5)
            prototype = y[chosen].mean(0).expand_as(x)
            weight = method.trainable["generative"][i].weight[layer].flatten()
            generative = torch.sigmoid(torch.cat([prototype, x], 1) @ weight)
            torch.testing.assert_close(found[i]["prototype"][0, 1, layer].flatten(), generative, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("ablation", [{}, *ALONE], ids=str)
def test_shots_have_no_order(mshnet_config, ablation):
    method = build(replace(mshnet_config, **ablation))
    query, supports = seen(method, episodes(b=1, k=4))
    expected = method.predict(query, supports).logits
    torch.testing.assert_close(method.predict(query, supports[::-1]).logits, expected)
    torch.testing.assert_close(method.predict(query, supports[2:] + supports[:2]).logits, expected)
    assert not torch.allclose(method.predict(query, supports[:2]).logits, expected)
    torch.testing.assert_close(
        method.predict(query, supports[:1] * 3).logits, method.predict(query, supports[:1]).logits
    )


@pytest.mark.parametrize("ablation", [{}, *ALONE], ids=str)
def test_gradients_reach_every_learned_parameter_and_no_frozen_one(mshnet_config, ablation):
    method = build(replace(mshnet_config, **ablation))
    loss, report = assert_all_learns(method, episodes(k=2))
    assert loss.item() == pytest.approx((report["loss/main"] + report["loss/inner"]).item())


@torch.no_grad()
def test_every_w_of_the_generative_similarity_matters(mshnet_config):
    method = build(mshnet_config)
    batch = episodes()
    before = in_evaluation(method, batch)
    for generative in method.trainable["generative"]:
        for layer in generative.weight:
            for half in layer:
                kept = half.clone()
                half.zero_()
                assert (in_evaluation(method, batch) - before).abs().max() > 1e-6
                half.copy_(kept)


def test_the_loss_is_equation_1_and_falls(mshnet_config):
    batch = episodes()
    method = build(mshnet_config)
    loss, _ = method.loss(batch, StepContext())
    logits, inner = method.forward(batch)
    parts = [F.interpolate(x, SIZE, mode="bilinear", align_corners=True) for x in (logits, *inner)]
    main, *levels = (F.cross_entropy(x, batch.query_mask.long(), ignore_index=255) for x in parts)
    assert len(levels) == 3
    assert loss.item() == pytest.approx((main + sum(levels) / 3).item(), rel=1e-5)
    assert_loss_falls(method, batch, steps=10, to=0.85)


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
def test_two_ranks_learn_what_one_learns(mshnet_config, unknown):
    _, methods = assert_ranks_learn_alike(
        lambda: build(mshnet_config), episodes(b=4, k=2), unknown, rtol=1e-3, atol=1e-5
    )
    seen, here, there = (dict(method.trainable.named_buffers()) for method in methods)
    for name, expected in seen.items():
        assert torch.equal(here[name], there[name]), name
        torch.testing.assert_close(here[name], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_a_support_without_an_object_still_gives_a_prediction(mshnet_config):
    method = build(mshnet_config)
    batch = episodes(b=1, k=2)
    batch.support_mask[:, 1] = 255
    query, supports = seen(method, batch)
    for block in BLOCKS:
        assert supports[1][f"columns {block}"].shape[2] == 0
        assert supports[1][f"prototype {block}"].eq(0).all()
    assert method.predict(query, supports).logits.isfinite().all()
    torch.testing.assert_close(
        method.predict(query, supports).logits, in_evaluation(method, batch), rtol=1e-4, atol=1e-5
    )
    batch.support_mask[:] = 255
    loss, _ = method.loss(batch, StepContext())
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.trainable.parameters())
    assert torch.stack([maps["cosine"].abs().max() for maps in method.similarities(batch)]).eq(0).all()


def test_of_an_image_only_unit_vectors_and_two_numbers_a_position_are_kept(mshnet_config):
    batch = episodes(b=1)
    for ablation in ({}, *ALONE):
        method = build(replace(mshnet_config, **ablation))
        features = method.encode(method.non_trainable["normalize"](batch.query))
        kept = {name: tuple(t.shape) for name, t in features.items() if name.endswith("2")}  # of block 2
        cosine, prototype = {"pixels 2": (1, 2, 9, 9, 128)}, {"query 2": (1, 2, 9, 9), "support 2": (1, 2, 9, 9)}
        expected = {"cosine": cosine, "prototype": prototype}.get(method.config.similarities, cosine | prototype)
        assert kept == expected


def test_energy_maps_are_the_mean_similarities_stretched(mshnet_config):
    method = build(mshnet_config)
    batch = episodes(b=1, k=3)
    found = method.maps(*seen(method, batch))
    assert list(found) == [f"{name} similarity, block {n}" for name in ("prototype", "cosine") for n in (2, 3, 4)]
    for i, block in enumerate(BLOCKS):
        for name in ("prototype", "cosine"):
            mean = method.similarities(batch)[i][name][0].mean((0, 1)).detach()
            ours = found[f"{name} similarity, block {block}"]
            torch.testing.assert_close(ours, (mean - mean.min()) / (mean.max() - mean.min()), rtol=1e-2, atol=2e-3)
    assert len(build(replace(mshnet_config, similarities="cosine")).maps(*seen(method, batch))) == 3


def test_evaluation_is_the_same_in_training_mode_and_leaves_the_mode(mshnet_config):
    method = build(mshnet_config)
    batch = episodes(b=1)
    method.trainable.train()
    first, second = (method.predict(*seen(method, batch)).logits for _ in range(2))
    assert torch.equal(first, second)
    assert method.trainable.training and not method.non_trainable["backbone"].training


def test_bfloat16_stays_finite_and_near(mshnet_config):
    method = build(mshnet_config)
    assert_bfloat16_is_near(method, episodes(k=2))
    with torch.autocast("cpu", torch.bfloat16):
        assert method.predict(*seen(method, episodes(k=2))).logits.isfinite().all()
