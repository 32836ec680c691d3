"""MSANet and BAM: training and evaluation agree, everything learns, and the ensemble does what it should."""

from dataclasses import fields, replace

import pytest
import torch
from torch.nn import functional as F

from fss.data.batch import EpisodeBatch
from fss.methods.base import Alone
from fss.methods.msanet_config import BAMConfig
from tests.methods.made_episodes import SIZE, episodes, image_by_image, seen
from tests.methods.made_msanet import CLASSES, build
from tests.thread_ranks import run_ranks


def of_no_base_class(batch: EpisodeBatch) -> EpisodeBatch:
    """As in evaluation: all base classes count in the base map."""
    return replace(batch, class_id=torch.full_like(batch.class_id, 99))


VARIANTS = [
    (1, {}), (3, {}), (2, {"prior_mask": "masked", "kshot": "mean"}), (2, {"kshot": "learned", "shots": 2}),
    (2, {"scores": "log", "squeeze": "feature"}), (1, {"output": "meta", "prior_mask": "off", "prototype": False}),
    (1, {"multi_similarity": False, "reduction": "shared"}), (1, {"attention": False, "similarity_bn": "batch"}),
    (3, {"backbone": "vgg16_bn"}), (2, {"backbone": "vgg16_bn", "kshot": "learned", "shots": 2, "reference": True}),
    (1, {"attention": False, "prototype": False}), (1, {"backbone": "resnet50"}),
]    # fmt: skip


@pytest.mark.parametrize(("k", "variant"), VARIANTS, ids=str)
def test_training_and_evaluation_compute_the_same_logits(msanet_config, variant, k):
    method = build(msanet_config(**variant))
    method.trained.eval()
    batch = of_no_base_class(episodes(k=k))
    with torch.no_grad():
        logits, _ = method.forward(batch)
    expected = F.interpolate(logits, SIZE, mode="bilinear", align_corners=True)
    torch.testing.assert_close(image_by_image(method, batch), expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("k", "variant"), [(1, {}), (2, {}), (1, {"prior_mask": "unmasked"})], ids=str)
def test_bam_computes_the_same_logits_in_both_orders(msanet_config, variant, k):
    method = build(msanet_config(BAMConfig, **variant))
    batch = of_no_base_class(episodes(k=k))
    with torch.no_grad():
        logits, _ = method.forward(batch)
    expected = F.interpolate(logits, SIZE, mode="bilinear", align_corners=True)
    torch.testing.assert_close(image_by_image(method, batch), expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("k", "variant"), [v for v in VARIANTS if v[1].get("backbone") != "resnet50"], ids=str)
def test_gradients_reach_every_learned_parameter_and_no_frozen_one(msanet_config, variant, k):
    method = build(msanet_config(**variant))
    before = {name: t.clone() for name, t in method.replica.state_dict().items()}
    loss, report = method.loss(episodes(k=k), Alone(), 0)
    loss.backward()
    learned = {name: p for name, p in method.trained.named_parameters() if p.requires_grad}
    assert not [name for name, p in learned.items() if p.grad is None or p.grad.abs().sum() == 0]
    idle = [name for name in method.trained.state_dict() if name.startswith("learner.ensemble")]
    assert all(name in learned for name in idle) == (method.config.output == "final")
    assert not any(p.requires_grad for p in method.replica.parameters())
    assert all(torch.equal(t, before[name]) for name, t in method.replica.state_dict().items())
    assert loss.item() == pytest.approx(sum(v.item() for name, v in report.items() if name.startswith("loss/")))


def test_the_loss_weighs_the_meta_learner_and_falls(msanet_config):
    batch = episodes()
    method = build(msanet_config(meta_weight=0.5))
    loss, report = method.loss(batch, Alone(), 0)
    assert loss.item() == pytest.approx((report["loss/main"] + 0.5 * report["loss/meta"]).item())
    optimizer = torch.optim.SGD(method.trained.parameters(), lr=0.05, momentum=0.9)
    for step in range(12):
        optimizer.zero_grad()
        later, _ = method.loss(batch, Alone(), step)
        later.backward()
        optimizer.step()
    assert later < 0.9 * loss


def test_in_training_the_episodes_own_class_is_no_base_class(msanet_config):
    method = build(msanet_config())
    batch = episodes(b=2)
    batch.class_id[1] = 4
    with torch.no_grad():
        block4 = method.replica["backbone"].blocks(method.replica["standardise"](batch.query)).block4
        shares = method.replica["base"](block4).softmax(1)    # [B, 1 + 3, h, w]: background, 1, 4, 6
        found = method._cues(batch).base
    expected = torch.stack([shares[0, [2, 3]].sum(0), shares[1, [1, 3]].sum(0)])
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-5)
    features = method.encode(method.replica["standardise"](batch.query[:1]))
    torch.testing.assert_close(features["base"][0, 0], shares[0, 1:].sum(0), rtol=1e-4, atol=1e-5)
    assert method.learnt() == CLASSES


def test_what_the_base_learner_knows_is_taken_from_the_class(msanet_config):
    method = build(msanet_config())
    query, supports = seen(method, episodes(b=1))
    known = query | {"base": torch.ones_like(query["base"])}
    unknown = query | {"base": torch.zeros_like(query["base"])}
    shift = method.predict(known, supports) - method.predict(unknown, supports)
    torch.testing.assert_close(shift[:, 0], torch.full_like(shift[:, 0], 0.4))    # `suppress` of the base map
    assert shift[:, 1].eq(0).all()


def test_the_order_of_shots_changes_nothing(msanet_config):
    method = build(msanet_config(kshot="learned", shots=3))
    query, supports = seen(method, episodes(b=1, k=3))
    expected = method.predict(query, supports)
    torch.testing.assert_close(method.predict(query, supports[::-1]), expected, rtol=1e-4, atol=1e-5)
    reference = build(msanet_config(kshot="learned", shots=3, reference=True))
    first, second = (reference.predict(query, order) for order in (supports, supports[::-1]))
    assert (first - second).abs().max() > 1e-5, "the reference gives weights to shots that they were not made for"


def test_one_shot_weighs_exactly_1_and_alike_shots_weigh_alike(msanet_config):
    method = build(msanet_config())
    query, (shot,) = seen(method, episodes(b=1))
    torch.testing.assert_close(method.predict(query, [shot] * 4), method.predict(query, [shot]), rtol=1e-4, atol=1e-5)
    weights = method.trained["learner"].weights
    assert weights(torch.tensor([[0.3]])).item() == 1
    ordered = weights(torch.tensor([[0.1, 0.2, 0.3]]))[0]
    assert ordered[0] > ordered[1] > ordered[2] and ordered.sum().item() == pytest.approx(1)


def test_a_support_without_an_object_still_gives_a_prediction(msanet_config):
    method = build(msanet_config())
    query, _ = seen(method, episodes(b=1))
    empty = method.describe(query, torch.full((1, SIZE, SIZE), 255, dtype=torch.uint8))
    assert empty["prototype"].eq(0).all() and all(empty[n].shape[1] == 0 for n in empty if n.startswith("layer"))
    assert method.predict(query, [empty]).isfinite().all()


def test_maps_are_named_and_between_0_and_1(msanet_config):
    method = build(msanet_config())
    maps = method.maps(*seen(method, episodes(b=1, k=2)))
    blocks = [f"similarity, block {number}" for number in (2, 3, 4)]
    assert {*maps} == {"meta prediction", "base classes", "final prediction", "prior mask", *blocks}
    for name, found in maps.items():
        assert found.shape == (9, 9) and 0 <= found.min() <= found.max() <= 1, name
    alone = build(msanet_config(output="meta", prior_mask="off", multi_similarity=False))
    assert list(alone.maps(*seen(alone, episodes(b=1)))) == ["meta prediction"]


UNKNOWN = {"uneven": [SIZE - 2, SIZE // 2, 0, 3], "a rank knows nothing": [SIZE, SIZE, 0, 3]}
"""Rows of each of four masks that are 255."""


@pytest.mark.parametrize(
    ("unknown", "variant"),
    [("uneven", {}), ("uneven", {"similarity_bn": "batch"}), ("a rank knows nothing", {})],
    ids=str,
)
def test_two_ranks_learn_what_one_learns(msanet_config, unknown, variant):
    batch = episodes(b=4)
    for mask, rows in zip(batch.query_mask, UNKNOWN[unknown], strict=True):
        mask[:rows] = 255
    methods = [build(msanet_config(meta_weight=0.25, **variant)) for _ in range(3)]    # threads share one generator

    def learn(peers):
        method = methods[peers.rank if peers.world == 2 else 2]
        share = slice(peers.rank * 4 // peers.world, (peers.rank + 1) * 4 // peers.world)
        mine = EpisodeBatch(**{f.name: getattr(batch, f.name)[share] for f in fields(batch)})
        loss, report = method.loss(mine, peers, 0)
        loss.backward()
        return {"loss": loss.detach(), **report, **{n: p.grad for n, p in method.trained.named_parameters()}}

    (alone,) = run_ranks(1, learn)
    first, second = run_ranks(2, learn)
    for name, expected in alone.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, expected, rtol=1e-4, atol=1e-6, msg=name)
    states = [method.trained.state_dict() for method in methods]
    for name in [name for name in states[0] if "running" in name]:
        assert torch.equal(states[0][name], states[1][name])
        torch.testing.assert_close(states[0][name], states[2][name])


def test_bfloat16_stays_finite_and_near(msanet_config):
    method = build(msanet_config())
    expected, _ = method.loss(episodes(), Alone(), 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method.loss(episodes(), Alone(), 0)
        logits = image_by_image(method, episodes(b=1))
    assert loss.dtype == torch.float32 and logits.isfinite().all()
    assert loss.item() == pytest.approx(expected.item(), rel=0.1)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in method.trained.parameters())
