"""MSANet and BAM: training and evaluation compute the same, every weight is trained, the ensemble corrects."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fss.data.batch import EpisodeBatch
from fss.methods.base import StepContext
from fss.methods.msanet.config import BAMConfig
from tests.support.learning import (
    UNKNOWN,
    assert_all_learns,
    assert_bfloat16_is_near,
    assert_loss_falls,
    assert_ranks_learn_alike,
)
from tests.support.made_episodes import SIZE, episodes, image_by_image, seen
from tests.support.made_msanet import CLASSES, build


def of_no_base_class(batch: EpisodeBatch) -> EpisodeBatch:
    """As in evaluation: all base classes count in the base map."""
    return replace(batch, class_id=torch.full_like(batch.class_id, 99))


ABLATIONS = [
    (1, {}),
    (3, {}),
    (2, {"prior_mask": "masked", "kshot": "mean"}),
    (2, {"kshot": "learned", "shots": 2}),
    (2, {"scores": "log", "squeeze": "feature"}),
    (1, {"output": "meta", "prior_mask": "off", "prototype": False}),
    (1, {"multi_similarity": False, "reduction": "shared"}),
    (1, {"attention": False, "similarity_bn": "batch"}),
    (3, {"backbone": "vgg16_bn"}),
    (2, {"backbone": "vgg16_bn", "kshot": "learned", "shots": 2, "reference": True}),
    (1, {"attention": False, "prototype": False}),
    (1, {"backbone": "resnet50"}),
]


@pytest.mark.parametrize(("k", "ablation"), ABLATIONS, ids=str)
def test_training_and_evaluation_compute_the_same_logits(msanet_config, ablation, k):
    method = build(msanet_config(**ablation))
    method.trainable.eval()
    batch = of_no_base_class(episodes(k=k))
    with torch.no_grad():
        logits, _ = method.forward(batch)
    expected = F.interpolate(logits, SIZE, mode="bilinear", align_corners=True)
    torch.testing.assert_close(image_by_image(method, batch), expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("k", "ablation"), [(1, {}), (2, {}), (1, {"prior_mask": "unmasked"})], ids=str)
def test_bam_computes_the_same_logits_in_both_orders(msanet_config, ablation, k):
    method = build(msanet_config(BAMConfig, **ablation))
    batch = of_no_base_class(episodes(k=k))
    with torch.no_grad():
        logits, _ = method.forward(batch)
    expected = F.interpolate(logits, SIZE, mode="bilinear", align_corners=True)
    torch.testing.assert_close(image_by_image(method, batch), expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("k", "ablation"), [v for v in ABLATIONS if v[1].get("backbone") != "resnet50"], ids=str)
def test_gradients_reach_every_learned_parameter_and_no_frozen_one(msanet_config, ablation, k):
    method = build(msanet_config(**ablation))
    idle = [name for name, p in method.trainable.named_parameters() if not p.requires_grad]
    loss, report = assert_all_learns(method, episodes(k=k), idle)
    ensemble = [name for name in method.trainable.state_dict() if name.startswith("learner.ensemble")]
    assert {*ensemble}.isdisjoint(idle) == (method.config.output == "final")
    assert loss.item() == pytest.approx(sum(v.item() for name, v in report.items() if name.startswith("loss/")))


def test_the_loss_weighs_the_meta_learner_and_falls(msanet_config):
    batch = episodes()
    method = build(msanet_config(meta_weight=0.5))
    loss, report = method.loss(batch, StepContext())
    assert loss.item() == pytest.approx((report["loss/main"] + 0.5 * report["loss/meta"]).item())
    assert_loss_falls(method, batch, steps=12, to=0.9)


def test_in_training_the_episodes_own_class_is_no_base_class(msanet_config):
    method = build(msanet_config())
    batch = episodes(b=2)
    batch.class_id[1] = 4
    with torch.no_grad():
        block4 = method.non_trainable["backbone"].blocks(method.non_trainable["normalize"](batch.query)).block4
        shares = method.non_trainable["base"](block4).softmax(1)  # [B, 1 + 3, h, w]: background, 1, 4, 6
        found = method._cues(batch).base
    expected = torch.stack([shares[0, [2, 3]].sum(0), shares[1, [1, 3]].sum(0)])
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-5)
    features = method.encode(method.non_trainable["normalize"](batch.query[:1]))
    torch.testing.assert_close(features["base"][0, 0], shares[0, 1:].sum(0), rtol=1e-4, atol=1e-5)
    assert method.seen_classes() == CLASSES


def test_what_the_base_learner_knows_is_taken_from_the_class(msanet_config):
    method = build(msanet_config())
    query, supports = seen(method, episodes(b=1))
    known = query | {"base": torch.ones_like(query["base"])}
    unknown = query | {"base": torch.zeros_like(query["base"])}
    shift = method.predict(known, supports).logits - method.predict(unknown, supports).logits
    torch.testing.assert_close(shift[:, 0], torch.full_like(shift[:, 0], 0.4))  # `suppress` of the base map
    assert shift[:, 1].eq(0).all()


def test_the_order_of_shots_changes_nothing(msanet_config):
    method = build(msanet_config(kshot="learned", shots=3))
    query, supports = seen(method, episodes(b=1, k=3))
    expected = method.predict(query, supports).logits
    torch.testing.assert_close(method.predict(query, supports[::-1]).logits, expected, rtol=1e-4, atol=1e-5)
    reference = build(msanet_config(kshot="learned", shots=3, reference=True))
    first, second = (reference.predict(query, order).logits for order in (supports, supports[::-1]))
    assert (first - second).abs().max() > 1e-5, "the reference gives weights to shots that they were not made for"


def test_one_shot_weighs_exactly_1_and_alike_shots_weigh_alike(msanet_config):
    method = build(msanet_config())
    query, (shot,) = seen(method, episodes(b=1))
    torch.testing.assert_close(
        method.predict(query, [shot] * 4).logits, method.predict(query, [shot]).logits, rtol=1e-4, atol=1e-5
    )
    weights = method.trainable["learner"].weights
    assert weights(torch.tensor([[0.3]])).item() == 1
    ordered = weights(torch.tensor([[0.1, 0.2, 0.3]]))[0]
    assert ordered[0] > ordered[1] > ordered[2] and ordered.sum().item() == pytest.approx(1)


def test_a_support_without_an_object_still_gives_a_prediction(msanet_config):
    method = build(msanet_config())
    query, _ = seen(method, episodes(b=1))
    empty = method.encode_support(query, torch.full((1, SIZE, SIZE), 255, dtype=torch.uint8))
    assert empty["prototype"].eq(0).all() and all(empty[n].shape[1] == 0 for n in empty if n.startswith("layer"))
    assert method.predict(query, [empty]).logits.isfinite().all()


def test_maps_are_named_and_between_0_and_1(msanet_config):
    method = build(msanet_config())
    maps = method.maps(*seen(method, episodes(b=1, k=2)))
    blocks = [f"similarity, block {number}" for number in (2, 3, 4)]
    assert {*maps} == {"meta prediction", "base classes", "final prediction", "prior mask", *blocks}
    for name, found in maps.items():
        assert found.shape == (9, 9) and 0 <= found.min() <= found.max() <= 1, name
    alone = build(msanet_config(output="meta", prior_mask="off", multi_similarity=False))
    assert list(alone.maps(*seen(alone, episodes(b=1)))) == ["meta prediction"]


@pytest.mark.parametrize(
    ("unknown", "ablation"),
    [("uneven", {}), ("uneven", {"similarity_bn": "batch"}), ("a rank knows nothing", {})],
    ids=str,
)
def test_two_ranks_learn_what_one_learns(msanet_config, unknown, ablation):
    config = msanet_config(meta_weight=0.25, **ablation)
    _, methods = assert_ranks_learn_alike(lambda: build(config), episodes(b=4), UNKNOWN[unknown], rtol=1e-4, atol=1e-6)
    alone, here, there = (method.trainable.state_dict() for method in methods)
    for name in [name for name in here if "running" in name]:
        assert torch.equal(here[name], there[name])
        torch.testing.assert_close(here[name], alone[name])


def test_bfloat16_stays_finite_and_near(msanet_config):
    method = build(msanet_config())
    assert_bfloat16_is_near(method, episodes())
    with torch.autocast("cpu", torch.bfloat16):
        assert image_by_image(method, episodes(b=1)).isfinite().all()
