"""QGNet: training and evaluation compute the same, and the maps are those of the paper."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fss.errors import ConfigError, WeightsError
from fss.methods.base import StepContext
from fss.methods.qgnet.config import QGNetConfig
from fss.methods.qgnet.method import GUIDED_MAP, PRIOR_MAP, QGNet
from fss.nn.exports import ExportHeader
from fss.nn.region import downsample_mask, guided_region_map, prior_region_map
from tests.support.learning import (
    UNKNOWN,
    assert_all_learns,
    assert_bfloat16_is_near,
    assert_loss_falls,
    assert_ranks_learn_alike,
)
from tests.support.made_episodes import SIZE, episodes, image_by_image
from tests.support.made_qgnet import build
from tests.support.thread_ranks import run_ranks


@pytest.mark.parametrize(
    ("k", "ablation"),
    [
        (1, {}),
        (5, {}),
        (1, {"prior_map": "off"}),
        (2, {"prior_map": "shuffled"}),
        (1, {"guided_map": False}),
        (2, {"heads": True}),
        (1, {"backbone": "vgg16_bn"}),
        (1, {"stem": "deep"}),
        (1, {"backbone": "resnet50", "heads": True}),
    ],
    ids=str,
)
def test_training_and_evaluation_compute_the_same_logits(qgnet_config, ablation, k):
    method = build(replace(qgnet_config, **ablation))
    batch = episodes(k=k)
    with torch.no_grad():
        logits, _ = method.forward(batch)
    expected = F.interpolate(logits, SIZE, mode="bilinear", align_corners=True)
    torch.testing.assert_close(image_by_image(method, batch), expected, rtol=1e-3, atol=2e-4)


def test_shots_are_averaged(qgnet_config):
    method = build(qgnet_config)
    batch = episodes(b=1, k=2)
    features = [method.encode(method.non_trainable["normalize"](image[None])) for image in batch.support[0]]
    seen = [method.encode_support(f, mask[None]) for f, mask in zip(features, batch.support_mask[0], strict=True)]
    query = method.encode(method.non_trainable["normalize"](batch.query))
    alone = [method.maps(query, [s])[GUIDED_MAP] for s in seen]
    torch.testing.assert_close(method.maps(query, seen)[GUIDED_MAP], (alone[0] + alone[1]) / 2)
    torch.testing.assert_close(method.predict(query, seen).logits, method.predict(query, seen[::-1]).logits)
    torch.testing.assert_close(method.predict(query, [seen[0]] * 3).logits, method.predict(query, [seen[0]]).logits)


def test_maps_are_those_of_the_two_frozen_networks(qgnet_config):
    method = build(qgnet_config)
    batch = episodes(b=1)
    query, support = (method.non_trainable["normalize"](x) for x in (batch.query, batch.support[0]))
    backbone, prior = method.non_trainable["backbone"], method.non_trainable["prior"]
    mask = downsample_mask(batch.support_mask[0], (9, 9))
    masked4 = backbone.block4(backbone.blocks(support).block3 * mask)
    expected = {
        PRIOR_MAP: prior_region_map(backbone.blocks(query).block4, prior.blocks(query).block4),
        GUIDED_MAP: guided_region_map(backbone.blocks(query).block4, masked4, mask),
    }
    found = method.maps(method.encode(query), [method.encode_support(method.encode(support), batch.support_mask[0])])
    assert list(found) == list(expected)
    for name, expected_map in expected.items():
        torch.testing.assert_close(found[name], expected_map[0, 0], rtol=1e-3, atol=1e-4)


def test_a_shuffled_map_has_the_same_values_in_a_fixed_other_order(qgnet_config):
    image = build(qgnet_config).non_trainable["normalize"](episodes(b=1).query)
    straight = build(qgnet_config).encode(image)[PRIOR_MAP]
    shuffled = build(replace(qgnet_config, prior_map="shuffled")).encode(image)[PRIOR_MAP]
    assert not torch.equal(straight, shuffled)
    torch.testing.assert_close(straight.flatten().sort().values, shuffled.flatten().sort().values)
    torch.testing.assert_close(build(replace(qgnet_config, prior_map="shuffled")).encode(image)[PRIOR_MAP], shuffled)


def test_a_support_without_an_object_still_gives_a_prediction(qgnet_config):
    method = build(qgnet_config)
    batch = episodes(b=1)
    features = method.encode(method.non_trainable["normalize"](batch.query))
    seen = method.encode_support(features, torch.full((1, SIZE, SIZE), 255, dtype=torch.uint8))
    assert seen["prototype"].eq(0).all() and seen["columns"].shape[1] == 0
    assert method.maps(features, [seen])[GUIDED_MAP].eq(0).all()
    assert method.predict(features, [seen]).logits.isfinite().all()


@pytest.mark.parametrize("ablation", [{}, {"heads": True}, {"guided_map": False}], ids=str)
def test_gradients_reach_every_learned_parameter_and_no_frozen_one(qgnet_config, ablation):
    method = build(replace(qgnet_config, **ablation))
    loss, report = assert_all_learns(method, episodes())
    assert loss.item() == pytest.approx((report["loss/main"] + report["loss/inner"]).item())


def test_the_loss_weighs_the_levels_and_falls(qgnet_config):
    batch = episodes()
    method = build(replace(qgnet_config, aux_weight=0.25))
    loss, report = method.loss(batch, StepContext())
    assert loss.item() == pytest.approx((report["loss/main"] + 0.25 * report["loss/inner"]).item())
    assert_loss_falls(method, batch, steps=12, to=0.8)


def test_the_share_found_leaves_unknown_pixels_out(qgnet_config):
    method = build(qgnet_config)
    batch = episodes()
    _, report = method.loss(batch, StepContext())
    with torch.no_grad():
        logits = F.interpolate(method.forward(batch)[0], SIZE, mode="bilinear", align_corners=True)
    known = batch.query_mask != 255
    found, truth = logits.argmax(1).bool() & known, (batch.query_mask == 1) & known
    assert report["iou"].item() == pytest.approx(((found & truth).sum() / (found | truth).sum().clamp(min=1)).item())


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
def test_two_ranks_learn_what_one_learns_however_the_unknown_pixels_lie(qgnet_config, unknown):
    config = replace(qgnet_config, aux_weight=0.25)
    loss, _ = assert_ranks_learn_alike(lambda: build(config), episodes(b=4), unknown, rtol=1e-4, atol=1e-6)
    assert (loss > 0) == (min(unknown) < SIZE), "without a known pixel the loss is 0"


def test_reference_batch_norm_follows_each_group_of_images_as_the_reference_does(qgnet_config):
    method = build(replace(qgnet_config, bn="reference", prior_map="off"))
    batch = episodes(b=3, k=2)
    plain = build(replace(qgnet_config, bn="reference", prior_map="off")).non_trainable["backbone"]
    normalize = method.non_trainable["normalize"]
    query3 = plain.blocks_2_3(normalize(batch.query))[1]
    query4 = plain.block4(query3)
    assert torch.equal(method._frozen_features(batch).query4, query4)
    for shot in range(2):  # the reference sends every shot through on its own, and block 4 at the end of each
        block3 = plain.blocks_2_3(normalize(batch.support[:, shot]))[1]
        plain.block4(block3 * downsample_mask(batch.support_mask[:, shot], (9, 9)))
    for name, value in method.non_trainable["backbone"].state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], msg=name)


def test_reference_statistics_are_equal_on_all_ranks_after_a_step(qgnet_config):
    methods = [build(replace(qgnet_config, bn="reference")) for _ in range(2)]
    start = methods[0].non_trainable["prior"].bn1.running_mean.clone()

    def step(collectives):
        method = methods[collectives.rank]
        method.loss(episodes(seed=collectives.rank), StepContext(collectives))
        method.after_step(StepContext(collectives))
        return {n: t.clone() for n, t in method.non_trainable.state_dict().items() if "running" in n}

    first, second = run_ranks(2, step)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(methods[0].non_trainable["prior"].bn1.running_mean, start)


def test_bfloat16_stays_finite_and_near(qgnet_config):
    assert_bfloat16_is_near(build(qgnet_config), episodes())


def test_caveats_name_what_is_far_from_the_paper(qgnet_config):
    caveats = " ".join(build(qgnet_config).caveats(1000))
    for piece in ("random weights", "2,400 images seen", "1,000 episodes"):
        assert piece in caveats
    known = build(qgnet_config)
    known.prior_header = ExportHeader(method="moco", backbone="resnet18")
    assert any("MoCo" in text for text in known.caveats(10**7))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prior_weights": None}, r"prior_map is on but .*pretrain.*prior_map to off"),
        ({"backbone": "resnet50"}, r"no cosine between the 2048 channels .* 512 .*set heads to true"),
    ],
)
def test_networks_that_do_not_fit_are_refused(qgnet_config, change, sentence):
    with pytest.raises((ConfigError, WeightsError), match=sentence):
        build(replace(qgnet_config, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"size": 472},
        {"bins": []},
        {"bins": [0.0]},
        {"bins": [2.5]},
        {"reduction_dropout": 1.0},
        {"classifier_dropout": -0.1},
        {"aux_weight": -1.0},
        {"prior_map": "off", "guided_map": False},
        {"prior_map": "off", "heads": True},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(change):
    with pytest.raises(ConfigError, match=rf"method\.{next(iter(change))} is"):
        QGNetConfig(**change)


def test_with_one_map_the_learned_parameters_are_those_of_pfenet():
    with torch.device("meta"):
        method = QGNet(QGNetConfig(prior_map="off", bins=[60, 30, 15, 8]))
    learned = sum(p.numel() for p in method.trainable.parameters())
    assert round(learned / 1e6, 1) == 10.8  # counted by PFENet's authors
