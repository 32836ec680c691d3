"""MSANet and BAM: every option is what it says, exports stand alone, and files that do not fit are refused."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fss.errors import ConfigError, WeightsError
from fss.methods import METHODS, load_method
from fss.methods.base import StepContext
from fss.methods.msanet.config import BAMConfig, MSANetConfig
from fss.methods.msanet.method import BAM
from fss.nn.exports import ExportHeader, save_export
from tests.support.made_episodes import SIZE, episodes, image_by_image
from tests.support.made_msanet import CLASSES, build


@pytest.mark.parametrize(("kind", "counted"), [(MSANetConfig, 5_131_782), (BAMConfig, 4_917_254)])
def test_learned_parameters_are_those_counted_in_the_published_code(kind, counted):
    base = {"backbone": "resnet50", "stem": "deep", "classes": {str(i): name for i, name in CLASSES.items()}}
    with torch.device("meta"):
        method = METHODS[kind.name](kind(stem="deep"), header=ExportHeader(base=ExportHeader(**base)))
    assert sum(p.numel() for p in method.trainable.parameters()) == counted


def test_bam_is_msanet_without_its_two_modules(msanet_config):
    off = {"multi_similarity": False, "attention": False, "prior_mask": "masked"}
    bam, msanet = build(msanet_config(BAMConfig)), build(msanet_config(**off))
    batch = episodes(k=2)
    with torch.no_grad():
        for ours, theirs in zip(bam.forward(batch), msanet.forward(batch), strict=True):
            assert torch.equal(ours, theirs)
    assert isinstance(bam, BAM)


def test_the_reference_knows_a_vggs_block_3_by_its_last_shot_only(msanet_config):
    options = {"backbone": "vgg16_bn", "kshot": "learned", "shots": 2}
    method, reference = build(msanet_config(**options)), build(msanet_config(**options, reference=True))
    batch = episodes(b=1, k=2)
    last = replace(batch, support=batch.support[:, 1:], support_mask=batch.support_mask[:, 1:])
    with torch.no_grad():
        mean, odd, alone = method._cues(batch), reference._cues(batch), method._cues(last)
    torch.testing.assert_close(odd.similarity[:, :3], alone.similarity[:, :3])
    torch.testing.assert_close(odd.similarity[:, 3:], mean.similarity[:, 3:])
    assert not torch.allclose(odd.similarity[:, :3], mean.similarity[:, :3], atol=1e-4)


def test_the_logarithm_of_scores_decides_alike_and_is_a_likelihood(msanet_config):
    method, sound = build(msanet_config()), build(msanet_config(scores="log"))
    for learner in (method, sound):  # as they begin: the ensemble is the meta learner
        learner.trainable["learner"].ensemble.load_state_dict(
            {k: torch.tensor([1.0, 0]) for k in ("adjust", "suppress")}
        )
    with torch.no_grad():
        scores, meta = method.forward(episodes())
        logits, _ = sound.forward(episodes())
    assert torch.equal(scores.argmax(1), logits.argmax(1))
    torch.testing.assert_close(scores, meta.softmax(1))
    torch.testing.assert_close(logits.softmax(1), meta.softmax(1))


def test_fixed_batch_norm_stays_fixed(msanet_config):
    method = build(msanet_config())
    method.trainable.train()
    method.loss(episodes(), StepContext())
    norm = method.trainable["learner"].similarity.layers[1]
    assert norm.running_mean.eq(0).all() and norm.running_var.eq(1).all() and norm.num_batches_tracked == 0
    learning = build(msanet_config(similarity_bn="batch"))
    learning.loss(episodes(), StepContext())
    assert learning.trainable["learner"].similarity.layers[1].running_mean.abs().sum() > 0


@pytest.mark.parametrize("kind", [MSANetConfig, BAMConfig])
def test_an_export_needs_no_other_file_and_may_show_the_meta_learner_alone(msanet_config, kind, tmp_path):
    method = build(msanet_config(kind))
    tensors, header = method.export()
    header = replace(header, config=header.config | {"base_weights": "/gone"})
    save_export(tmp_path / "x.safetensors", tensors, header)
    again, _ = load_method(tmp_path / "x.safetensors")
    batch = episodes(b=1)
    assert torch.equal(image_by_image(again, batch), image_by_image(method, batch))
    assert again.seen_classes() == CLASSES and any("episodes" in text for text in again.caveats(1000))
    meta = type(method).restore(tensors, replace(header, config=header.config | {"output": "meta"}))
    with torch.no_grad():
        expected = method.forward(batch)[1]
    torch.testing.assert_close(
        image_by_image(meta, batch),
        F.interpolate(expected, SIZE, mode="bilinear", align_corners=True),
        rtol=1e-3,
        atol=2e-4,
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"base_weights": None}, "base_weights names no file.*train_base"),
        ({"base_weights": "/gone/base.safetensors"}, "is no file"),
        ({"stem": "deep"}, r"stem is deep but the base learner was trained with torchvision: set method\.stem"),
    ],
)
def test_base_weights_that_do_not_fit_are_refused(msanet_config, change, sentence):
    with pytest.raises((ConfigError, WeightsError), match=sentence):
        build(msanet_config(**change))


def test_base_weights_of_another_backbone_or_method_are_refused(msanet_config, base_file, tmp_path):
    with pytest.raises(ConfigError, match="backbone is resnet50 but the base learner was trained with resnet18"):
        build(msanet_config(backbone="resnet50", base_weights=base_file("resnet18")))
    save_export(tmp_path / "other.safetensors", *build(msanet_config()).export())
    with pytest.raises(WeightsError, match=r"msanet.*train_base"):
        build(msanet_config(base_weights=str(tmp_path / "other.safetensors")))


def test_learned_weights_are_for_one_number_of_shots(msanet_config):
    method = build(msanet_config(kshot="learned", shots=2))
    with pytest.raises(ConfigError, match=r"learned for method.shots 2 but an episode has 3 shot.*kshot psi"):
        method.loss(episodes(k=3), StepContext())


def test_a_warm_start_keeps_to_the_classes_of_the_base_learner(msanet_config, tmp_path):
    """The file brings its own base learner, which `base_weights`, checked against the fold, must not belie."""
    source, method = build(msanet_config()), build(msanet_config())
    source.base_header = replace(source.base_header, best_miou=0.5)
    save_export(tmp_path / "x.safetensors", *source.export())
    assert method.init_from(tmp_path / "x.safetensors") and method.base_header == source.base_header
    source.base_header = replace(source.base_header, classes=source.base_header.classes | {"6": "bird"})
    save_export(tmp_path / "x.safetensors", *source.export())
    with pytest.raises(WeightsError, match=r"x\.safetensors holds .* other classes .*base_weights \(bird, bus\)"):
        method.init_from(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"size": 472},
        {"shots": 1, "kshot": "learned"},
        {"temperature": 0.0},
        {"reduction_dropout": 1.0},
        {"classifier_dropout": -0.1},
        {"attention_dropout": 1.5},
        {"meta_weight": -1.0},
        {"reference": True},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(change):
    with pytest.raises(ConfigError, match=rf"method\.{next(iter(change))} is"):
        MSANetConfig(**change)
