"""The plan of an evaluation: options, protocol and the header of the weights, put together."""

from dataclasses import replace

import pytest

from fss.data.episode_lists import write_list
from fss.errors import ConfigError
from fss.evaluate.plan import EvalConfig, FoldConfig, plan_evaluation, require_valid_size
from fss.methods.gfsam import GFSAMConfig
from fss.methods.prototype import PrototypeConfig
from fss.nn.exports import ExportHeader
from shards.format import Manifest, SampleEntry

TRAINED = ExportHeader(scheme="interleaved", fold=2, shots=5, novel=[3, 7], data="toy", steps=10)


@pytest.fixture
def manifest() -> Manifest:
    """8 classes, each in 10 images."""
    samples = [
        SampleEntry(
            key=f"s{i:02d}",
            shard=0,
            offset=0,
            length=1,
            height=60,
            width=80,
            classes={1 + i % 8: 900, 1 + (i + 3) % 8: 900},
        )
        for i in range(40)
    ]
    return Manifest(name="toy", classes={i: f"class {i}" for i in range(1, 9)}, samples=samples)


def test_nothing_trained_and_nothing_given(manifest):
    made = plan_evaluation(FoldConfig(), EvalConfig(), ExportHeader(), manifest, size=33)
    assert (made.fold.scheme, made.fold.fold, made.shots) == ("interleaved", 0, 1)
    assert made.classes == made.fold.novel == (1, 5)
    assert made.scoring.size == 33 and made.scoring.resize == "exact" and made.scoring.resolution == "original"
    assert len(made.episodes) == made.protocol.episodes * len(made.protocol.seeds)


def test_weights_are_evaluated_as_they_were_trained(manifest):
    made = plan_evaluation(FoldConfig(), EvalConfig(episodes=4), TRAINED, manifest, size=33)
    assert (made.fold.fold, made.shots, made.classes) == (2, 5, (3, 7))
    assert {len(episode.supports) for episode in made.episodes} == {5}
    assert plan_evaluation(FoldConfig(shots=1), EvalConfig(episodes=4), TRAINED, manifest, size=33).shots == 1
    base = plan_evaluation(FoldConfig(), EvalConfig(episodes=4, split="base"), TRAINED, manifest, size=33)
    assert base.classes == (1, 2, 4, 5, 6, 8)


def test_listed_classes_are_those_of_training(manifest):
    header = replace(TRAINED, scheme="list", fold=0)
    assert plan_evaluation(FoldConfig(), EvalConfig(episodes=4), header, manifest, size=33).classes == (3, 7)


def test_classes_that_were_trained_on_are_refused(manifest):
    with pytest.raises(ConfigError, match="trained on fold 2 of scheme interleaved, and have learned"):
        plan_evaluation(FoldConfig(fold=1), EvalConfig(), TRAINED, manifest, size=33)


@pytest.mark.parametrize(
    "other",
    [
        FoldConfig(scheme="list", fold=0, novel=["class 3", "class 4"]),
        FoldConfig(scheme="list", fold=0, novel=["class 8"]),
    ],
)
def test_classes_that_were_trained_on_by_another_scheme_are_refused(manifest, other):
    with pytest.raises(ConfigError, match=r"weights, which have learned class [48] \(1 of"):
        plan_evaluation(other, EvalConfig(), TRAINED, manifest, size=33)
    held_out = replace(TRAINED, held_out=[4, 8])
    assert plan_evaluation(other, EvalConfig(episodes=4), held_out, manifest, size=33).fold.scheme == "list"
    elsewhere = replace(TRAINED, data="other photographs")
    assert plan_evaluation(other, EvalConfig(episodes=4), elsewhere, manifest, size=33).fold.scheme == "list"


def test_what_is_given_stands_in_for_the_protocol(manifest):
    options = EvalConfig(
        protocol="hsnet",
        episodes=6,
        seeds=[8, 9],
        min_area=1,
        labels="own",
        resize="compat",
        resolution=64,
        size=41,
        ignore_255=False,
        draw="round_robin",
        repeat_supports=False,
    )
    made = plan_evaluation(FoldConfig(), options, ExportHeader(), manifest, size=33)
    assert [episode.seed for episode in made.episodes] == [8] * 6 + [9] * 6
    scoring = made.scoring
    assert (scoring.size, scoring.resize, scoring.resolution, scoring.labels, scoring.ignore_255) == (
        41,
        "compat",
        64,
        "own",
        False,
    )
    words = made.statement(manifest, ExportHeader())
    assert words["input"] == "41 x 41 pixels, resize rule compat"
    assert words["scored at"] == "64 x 64 pixels"
    assert words["policy"] == "round_robin, supports without repetition, objects of at least 1 pixels"
    assert words["label 255"] == "counted as background"


def test_the_statement_names_training_and_prior(manifest):
    header = replace(
        TRAINED,
        novel_in_training="drop",
        episodes_seen=40,
        selected_on="novel",
        prior=ExportHeader(data="voc", epochs=200, images_seen=9),
    )
    words = plan_evaluation(FoldConfig(), EvalConfig(episodes=4), header, manifest, size=33).statement(manifest, header)
    assert "images with novel classes dropped" in words["trained on"]
    assert words["training length"] == "10 steps, 40 episodes"
    assert words["weights chosen by"].endswith("the test")
    assert words["prior trained"] == "on voc, 200 epochs, 9 images seen"


def test_a_list_is_evaluated_as_it_is(manifest, tmp_path):
    drawn = plan_evaluation(
        FoldConfig(), EvalConfig(episodes=5, seeds=[2, 6]), ExportHeader(), manifest, size=33
    ).episodes
    write_list(tmp_path / "list.tsv", drawn, manifest)
    made = plan_evaluation(
        FoldConfig(), EvalConfig(episode_list=str(tmp_path / "list.tsv")), ExportHeader(), manifest, size=33
    )
    assert made.episodes == drawn
    assert "as " in made.statement(manifest, ExportHeader())["episodes"]
    with pytest.raises(ConfigError, match=r"list.tsv has episodes of class 1, which is none of the novel classes"):
        plan_evaluation(
            FoldConfig(fold=3), EvalConfig(episode_list=str(tmp_path / "list.tsv")), ExportHeader(), manifest, size=33
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": [1, 1]}, "eval.seeds"),
        ({"seeds": []}, "eval.seeds"),
        ({"resolution": 0}, "eval.resolution is 0"),
        ({"cache_gib": -1}, "eval.cache_gib is -1: give at least 0"),
        ({"episodes": 0}, "eval.episodes is 0: give at least 1"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ConfigError, match=words):
        EvalConfig(**options)


def test_a_size_is_for_the_method_to_take():
    require_valid_size(PrototypeConfig(size=33), None)
    require_valid_size(PrototypeConfig(size=33), 41)
    require_valid_size(GFSAMConfig(sam="vit_t"), 512)
    with pytest.raises(ConfigError, match=r"eval.size is 48: give a multiple of 8 plus 1, such as 49"):
        require_valid_size(PrototypeConfig(size=33), 48)
    with pytest.raises(ConfigError, match=r"eval.size is 473 but SAM vit_h takes 1024 alone"):
        require_valid_size(GFSAMConfig(), 473)
