"""MSANet and BAM: training and evaluation agree, the ensemble does what it should, every option is what it says."""

import json
from dataclasses import fields, replace

import pytest
import torch
from torch.nn import functional as F

from fss.data.batch import EpisodeBatch
from fss.errors import ConfigError, WeightsError
from fss.methods import METHODS, load_method
from fss.methods.bam import BAM
from fss.methods.base import Alone
from fss.methods.msanet import MSANet
from fss.methods.msanet_config import BAMConfig, MSANetConfig
from fss.nn.pspnet import PSPNet
from fss.nn.weights import save_export
from tests.methods.made_episodes import SIZE, episodes, image_by_image, seen
from tests.thread_ranks import run_ranks

CLASSES = {1: "cat", 4: "dog", 6: "bus"}    # the made-up episodes are of class 1


@pytest.fixture(scope="session")
def base_file(tmp_path_factory):
    """Backbone -> the file of a base learner with random weights, as launch/train_base.py writes it."""
    folder, made = tmp_path_factory.mktemp("base"), {}

    def make(backbone: str) -> str:
        if backbone not in made:
            torch.manual_seed(1)
            header = {"method": "base", "backbone": backbone, "stem": "torchvision", "classes": json.dumps(CLASSES)}
            made[backbone] = folder / f"{backbone}.safetensors"
            save_export(made[backbone], PSPNet(backbone, "torchvision", len(CLASSES)).state_dict(), header)
        return str(made[backbone])

    return make


@pytest.fixture
def config(base_file):
    """Options -> config of an MSANet, or of the class given, that draws nothing at random."""

    def make(kind: type[BAMConfig] = MSANetConfig, *, backbone: str = "resnet18", **options) -> BAMConfig:
        off = {field.name: 0.0 for field in fields(kind) if field.name.endswith("_dropout")}
        weights = {"base_weights": base_file(backbone)}
        return kind(**{"size": SIZE, "backbone": backbone, "dim": 16, **off, **weights, **options})

    return make


def build(config: BAMConfig) -> MSANet:
    """With an ensemble, and weights of shots, that do something."""
    torch.manual_seed(0)
    method = METHODS[config.name](config)
    learner = method.trained["learner"]
    with torch.no_grad():
        learner.ensemble.adjust.copy_(torch.tensor([0.9, 0.2]))
        learner.ensemble.suppress.copy_(torch.tensor([0.8, 0.4]))
        for parameter in learner.weights.parameters():
            parameter.uniform_(0.1, 1)
    return method


def of_no_base_class(batch: EpisodeBatch) -> EpisodeBatch:
    """As in evaluation: all base classes count in the base map."""
    return replace(batch, class_id=torch.full_like(batch.class_id, 99))


VARIANTS = [
    (1, {}), (3, {}), (2, {"prior_mask": "masked", "kshot": "mean"}), (2, {"kshot": "learned", "shots": 2}),
    (2, {"scores": "log", "squeeze": "feature"}), (1, {"output": "meta", "prior_mask": "off", "prototype": False}),
    (1, {"multi_similarity": False, "reduction": "shared"}), (1, {"attention": False, "similarity_bn": "batch"}),
    (3, {"backbone": "vgg16_bn"}), (2, {"backbone": "vgg16_bn", "kshot": "learned", "shots": 2, "reference": True}),
    (1, {"backbone": "resnet50"}),
]    # fmt: skip


@pytest.mark.parametrize(("k", "variant"), VARIANTS, ids=str)
def test_training_and_evaluation_compute_the_same_logits(config, variant, k):
    method = build(config(**variant))
    method.trained.eval()
    batch = of_no_base_class(episodes(k=k))
    with torch.no_grad():
        logits, _ = method.forward(batch)
    expected = F.interpolate(logits, SIZE, mode="bilinear", align_corners=True)
    torch.testing.assert_close(image_by_image(method, batch), expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("k", "variant"), [(1, {}), (2, {}), (1, {"prior_mask": "unmasked"})], ids=str)
def test_bam_computes_the_same_logits_in_both_orders(config, variant, k):
    method = build(config(BAMConfig, **variant))
    batch = of_no_base_class(episodes(k=k))
    with torch.no_grad():
        logits, _ = method.forward(batch)
    expected = F.interpolate(logits, SIZE, mode="bilinear", align_corners=True)
    torch.testing.assert_close(image_by_image(method, batch), expected, rtol=1e-3, atol=2e-4)


def test_bam_is_msanet_without_its_two_modules(config):
    off = {"multi_similarity": False, "attention": False, "prior_mask": "masked"}
    bam, msanet = build(config(BAMConfig)), build(config(**off))
    batch = episodes(k=2)
    with torch.no_grad():
        for ours, theirs in zip(bam.forward(batch), msanet.forward(batch), strict=True):
            assert torch.equal(ours, theirs)
    assert isinstance(bam, BAM)


@pytest.mark.parametrize(("kind", "counted"), [(MSANetConfig, 5_131_782), (BAMConfig, 4_917_254)])
def test_learned_parameters_are_those_counted_in_the_published_code(kind, counted):
    base = {"backbone": "resnet50", "stem": "deep", "classes": json.dumps(CLASSES)}
    with torch.device("meta"):
        method = METHODS[kind.name](kind(stem="deep"), header={"base": json.dumps(base)})
    assert sum(p.numel() for p in method.trained.parameters()) == counted


@pytest.mark.parametrize(("k", "variant"), [v for v in VARIANTS if v[1].get("backbone") != "resnet50"], ids=str)
def test_gradients_reach_every_learned_parameter_and_no_frozen_one(config, variant, k):
    method = build(config(**variant))
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


def test_the_loss_weighs_the_meta_learner_and_falls(config):
    batch = episodes()
    method = build(config(meta_weight=0.5))
    loss, report = method.loss(batch, Alone(), 0)
    assert loss.item() == pytest.approx((report["loss/main"] + 0.5 * report["loss/meta"]).item())
    optimizer = torch.optim.SGD(method.trained.parameters(), lr=0.05, momentum=0.9)
    for step in range(12):
        optimizer.zero_grad()
        later, _ = method.loss(batch, Alone(), step)
        later.backward()
        optimizer.step()
    assert later < 0.9 * loss


def test_in_training_the_episodes_own_class_is_no_base_class(config):
    method = build(config())
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


def test_what_the_base_learner_knows_is_taken_from_the_class(config):
    method = build(config())
    query, supports = seen(method, episodes(b=1))
    known = query | {"base": torch.ones_like(query["base"])}
    unknown = query | {"base": torch.zeros_like(query["base"])}
    shift = method.predict(known, supports) - method.predict(unknown, supports)
    torch.testing.assert_close(shift[:, 0], torch.full_like(shift[:, 0], 0.4))    # `suppress` of the base map
    assert shift[:, 1].eq(0).all()


def test_the_order_of_shots_changes_nothing(config):
    method = build(config(kshot="learned", shots=3))
    query, supports = seen(method, episodes(b=1, k=3))
    expected = method.predict(query, supports)
    torch.testing.assert_close(method.predict(query, supports[::-1]), expected, rtol=1e-4, atol=1e-5)
    reference = build(config(kshot="learned", shots=3, reference=True))
    first, second = (reference.predict(query, order) for order in (supports, supports[::-1]))
    assert (first - second).abs().max() > 1e-5, "the reference gives weights to shots that they were not made for"


def test_the_reference_knows_a_vggs_block_3_by_its_last_shot_only(config):
    options = {"backbone": "vgg16_bn", "kshot": "learned", "shots": 2}
    method, reference = build(config(**options)), build(config(**options, reference=True))
    batch = episodes(b=1, k=2)
    last = replace(batch, support=batch.support[:, 1:], support_mask=batch.support_mask[:, 1:])
    with torch.no_grad():
        mean, odd, alone = method._cues(batch), reference._cues(batch), method._cues(last)
    torch.testing.assert_close(odd.similarity[:, :3], alone.similarity[:, :3])
    torch.testing.assert_close(odd.similarity[:, 3:], mean.similarity[:, 3:])
    assert not torch.allclose(odd.similarity[:, :3], mean.similarity[:, :3], atol=1e-4)


def test_one_shot_weighs_exactly_1_and_alike_shots_weigh_alike(config):
    method = build(config())
    query, (shot,) = seen(method, episodes(b=1))
    torch.testing.assert_close(method.predict(query, [shot] * 4), method.predict(query, [shot]), rtol=1e-4, atol=1e-5)
    weights = method.trained["learner"].weights
    assert weights(torch.tensor([[0.3]])).item() == 1
    ordered = weights(torch.tensor([[0.1, 0.2, 0.3]]))[0]
    assert ordered[0] > ordered[1] > ordered[2] and ordered.sum().item() == pytest.approx(1)


def test_the_logarithm_of_scores_decides_alike_and_is_a_likelihood(config):
    method, sound = build(config()), build(config(scores="log"))
    for learner in (method, sound):    # as they begin: the ensemble is the meta learner
        learner.trained["learner"].ensemble.load_state_dict({k: torch.tensor([1.0, 0]) for k in ("adjust", "suppress")})
    with torch.no_grad():
        scores, meta = method.forward(episodes())
        logits, _ = sound.forward(episodes())
    assert torch.equal(scores.argmax(1), logits.argmax(1))
    torch.testing.assert_close(scores, meta.softmax(1))
    torch.testing.assert_close(logits.softmax(1), meta.softmax(1))


def test_a_support_without_an_object_still_gives_a_prediction(config):
    method = build(config())
    query, _ = seen(method, episodes(b=1))
    empty = method.describe(query, torch.full((1, SIZE, SIZE), 255, dtype=torch.uint8))
    assert empty["prototype"].eq(0).all() and all(empty[n].shape[1] == 0 for n in empty if n.startswith("layer"))
    assert method.predict(query, [empty]).isfinite().all()


def test_maps_are_named_and_between_0_and_1(config):
    method = build(config())
    maps = method.maps(*seen(method, episodes(b=1, k=2)))
    blocks = [f"similarity, block {number}" for number in (2, 3, 4)]
    assert {*maps} == {"meta prediction", "base classes", "final prediction", "prior mask", *blocks}
    for name, found in maps.items():
        assert found.shape == (9, 9) and 0 <= found.min() <= found.max() <= 1, name
    alone = build(config(output="meta", prior_mask="off", multi_similarity=False))
    assert list(alone.maps(*seen(alone, episodes(b=1)))) == ["meta prediction"]


UNKNOWN = {"uneven": [SIZE - 2, SIZE // 2, 0, 3], "a rank knows nothing": [SIZE, SIZE, 0, 3]}
"""Rows of each of four masks that are 255."""


@pytest.mark.parametrize("variant", [{}, {"similarity_bn": "batch"}], ids=str)
@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
def test_two_ranks_learn_what_one_learns(config, unknown, variant):
    batch = episodes(b=4)
    for mask, rows in zip(batch.query_mask, unknown, strict=True):
        mask[:rows] = 255
    methods = [build(config(meta_weight=0.25, **variant)) for _ in range(3)]    # threads share one generator

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


def test_fixed_batch_norm_stays_fixed(config):
    method = build(config())
    method.trained.train()
    method.loss(episodes(), Alone(), 0)
    norm = method.trained["learner"].similarity.layers[1]
    assert norm.running_mean.eq(0).all() and norm.running_var.eq(1).all() and norm.num_batches_tracked == 0
    learning = build(config(similarity_bn="batch"))
    learning.loss(episodes(), Alone(), 0)
    assert learning.trained["learner"].similarity.layers[1].running_mean.abs().sum() > 0


def test_bfloat16_stays_finite_and_near(config):
    method = build(config())
    expected, _ = method.loss(episodes(), Alone(), 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method.loss(episodes(), Alone(), 0)
        logits = image_by_image(method, episodes(b=1))
    assert loss.dtype == torch.float32 and logits.isfinite().all()
    assert loss.item() == pytest.approx(expected.item(), rel=0.1)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in method.trained.parameters())


@pytest.mark.parametrize("kind", [MSANetConfig, BAMConfig])
def test_an_export_needs_no_other_file_and_may_show_the_meta_learner_alone(config, kind, tmp_path):
    method = build(config(kind))
    tensors, header = method.export()
    stored = json.loads(header["config"]) | {"base_weights": "/gone"}
    header["config"] = json.dumps(stored)
    save_export(tmp_path / "x.safetensors", tensors, header)
    again, _ = load_method(tmp_path / "x.safetensors")
    batch = episodes(b=1)
    assert torch.equal(image_by_image(again, batch), image_by_image(method, batch))
    assert again.learnt() == CLASSES and any("episodes" in text for text in again.cautions(1000))
    header["config"] = json.dumps(stored | {"output": "meta"})
    meta = type(method).restore(tensors, header)
    with torch.no_grad():
        expected = method.forward(batch)[1]
    torch.testing.assert_close(
        image_by_image(meta, batch), F.interpolate(expected, SIZE, mode="bilinear", align_corners=True),
        rtol=1e-3, atol=2e-4,
    )    # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"base_weights": None}, "base_weights names no file.*train_base"),
        ({"base_weights": "/gone/base.safetensors"}, "is no file"),
        ({"stem": "deep"}, r"stem is deep but the base learner was trained with torchvision: set method\.stem"),
    ],
)
def test_base_weights_that_do_not_fit_are_refused(config, change, sentence):
    with pytest.raises((ConfigError, WeightsError), match=sentence):
        build(config(**change))


def test_base_weights_of_another_backbone_or_method_are_refused(config, base_file, tmp_path):
    with pytest.raises(ConfigError, match="backbone is resnet50 but the base learner was trained with resnet18"):
        build(config(backbone="resnet50", base_weights=base_file("resnet18")))
    save_export(tmp_path / "other.safetensors", *build(config()).export())
    with pytest.raises(WeightsError, match=r"msanet.*train_base"):
        build(config(base_weights=str(tmp_path / "other.safetensors")))


def test_learned_weights_are_for_one_number_of_shots(config):
    method = build(config(kshot="learned", shots=2))
    with pytest.raises(ConfigError, match=r"learned for method.shots 2 but an episode has 3 shot.*kshot psi"):
        method.loss(episodes(k=3), Alone(), 0)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 472}, {"shots": 1, "kshot": "learned"}, {"temperature": 0.0}, {"reduction_dropout": 1.0},
        {"classifier_dropout": -0.1}, {"attention_dropout": 1.5}, {"meta_weight": -1.0}, {"reference": True},
    ],
    ids=str,
)    # fmt: skip
def test_options_that_make_no_sense_are_refused(change):
    with pytest.raises(ConfigError, match=rf"method\.{next(iter(change))} is"):
        MSANetConfig(**change)
