"""Folds, episodes and protocols of LVIS-92i, the part data sets and the cross-domain sets, as GF-SAM is evaluated."""

from collections import Counter

import numpy as np
import pytest

from fss.data.episodes import EpisodeSource, Policy, evaluation_episodes
from fss.data.folds import fold_of, training_fold
from fss.data.protocol import PROTOCOLS, protocol_of
from fss.datasets.isaid import ENDS as ISAID_ENDS
from fss.datasets.lvis import CLASSES as LVIS_CLASSES
from fss.errors import ConfigError
from shards.format import Manifest, SampleEntry, ShardError
from shards.sources.deepglobe import CLASSES as DEEPGLOBE_CLASSES
from shards.sources.isic import CLASSES as ISIC_CLASSES


def shown(times: dict[int, int], classes: dict[int, str], crops: int = 1) -> Manifest:
    """A set in which class c is in times[c] photographs, each cut to as many crops, all of which show it."""
    samples = [
        SampleEntry(
            key=f"{class_id:04d}-{photograph}-{crop}",
            shard=0,
            offset=0,
            length=1,
            height=9,
            width=9,
            classes={class_id: 5},
            crop_of=f"{class_id:04d}-{photograph}" if crops > 1 else "",
        )
        for class_id, count in times.items()
        for photograph in range(count)
        for crop in range(crops)
    ]
    return Manifest(name="made", classes=classes, samples=samples)


LVIS = {class_id: f"thing {class_id}" for class_id in range(1, LVIS_CLASSES + 1)}
TIMES = {class_id: int(np.random.default_rng(class_id).integers(0, 9)) for class_id in LVIS}


@pytest.mark.parametrize("shots", [1, 5])
def test_lvis_folds_are_cut_anew_for_each_number_of_shots(shots):
    enough = []
    for class_id in LVIS:
        if TIMES[class_id] > shots:
            enough.append(class_id)
    packed = shown(TIMES, LVIS)
    for fold in range(10):
        wanted = [enough[fold + 10 * v] for v in range(len(enough) // 10)]
        found = fold_of("lvis", fold, packed, shots=shots)
        assert list(found.novel) == wanted and found.base == ()
        assert found.rule.endswith(f"of the classes in more than K images; at K = {shots} they are {len(wanted)}")


def test_paco_folds_are_cut_first_and_thinned_then():
    classes = {class_id: f"mug:{class_id}" for class_id in range(1, 24)}
    times = {class_id: class_id % 5 for class_id in classes}
    packed = shown(times, classes, crops=4)  # four crops of a photograph are one photograph
    for shots in (1, 3):
        for fold in range(4):
            wanted = [1 + fold + 4 * v for v in range(23 // 4) if times[1 + fold + 4 * v] > shots]
            assert list(fold_of("paco", fold, packed, shots=shots).novel) == wanted


def test_pascal_part_folds_are_superclasses():
    names = {
        1: "animals/cat+HEAD",
        2: "animals/dog+LEG",
        3: "indoor/bottle+CAP",
        4: "person/person+ARM",
        5: "vehicles/bus+DOOR",
    }
    folds = [fold_of("pascal_part", fold, Manifest(name="made", classes=names)) for fold in range(4)]
    assert [fold.novel for fold in folds] == [(1, 2), (3,), (4,), (5,)]
    assert folds[0].base == (3, 4, 5)


def test_isaid_folds_are_contiguous():
    classes = {i: {1: ISAID_ENDS[0], 15: ISAID_ENDS[1]}.get(i, f"class {i}") for i in range(1, 16)}
    folds = [fold_of("isaid", fold, Manifest(name="made", classes=classes)) for fold in range(3)]
    assert [fold.novel for fold in folds] == [(1, 2, 3, 4, 5), (6, 7, 8, 9, 10), (11, 12, 13, 14, 15)]
    assert folds[1].base == (1, 2, 3, 4, 5, 11, 12, 13, 14, 15)


@pytest.mark.parametrize("scheme, classes", [("deepglobe", DEEPGLOBE_CLASSES), ("isic", ISIC_CLASSES)])
def test_cross_domain_sets_are_novel_as_a_whole(scheme, classes):
    found = fold_of(scheme, 0, Manifest(name="made", classes=classes))
    assert found.novel == tuple(classes) and found.base == ()
    with pytest.raises(ConfigError, match="it has only fold 0"):
        fold_of(scheme, 1, Manifest(name="made", classes=classes))


@pytest.mark.parametrize(
    "scheme, message",
    [
        ("lvis", "the 1203 classes of LVIS, this set has 2"),
        ("paco", "parts of objects such as mug:handle, cat is none"),
        ("pascal_part", r"names such as animals/dog\+HEAD, not cat"),
        ("deepglobe", "the classes urban, agriculture, rangeland, forest, water, barren"),
        ("isic", "the classes nevus, melanoma, seborrheic_keratosis"),
        ("isaid", "the 15 classes of iSAID, this set has 2"),
    ],
)
def test_another_set_is_refused(scheme, message):
    with pytest.raises(ShardError, match=f"scheme {scheme} needs {message}: give the packed set that belongs to it"):
        fold_of(scheme, 0, Manifest(name="made", classes={1: "cat", 2: "dog"}))


def test_a_fold_without_a_class_is_refused():
    with pytest.raises(ShardError, match="scheme lvis, fold 0 leaves 0 novel"):
        fold_of("lvis", 0, shown({3: 9}, LVIS), shots=5)


@pytest.mark.parametrize("scheme", ["lvis", "paco", "deepglobe", "isic"])
def test_nothing_trains_on_a_scheme_without_base_classes(scheme):
    message = f"episodes.scheme is {scheme}, which has no base classes and is for evaluation alone: choose pascal, coco"
    with pytest.raises(ConfigError, match=message):
        training_fold(scheme, 0, Manifest(name="made", classes={}))
    assert training_fold("list", 0, shown({1: 2, 2: 2}, {1: "cat", 2: "dog"}), ["cat"]).base == (2,)


def test_no_episodes_of_base_classes_that_are_none():
    packed = shown({1: 9, 2: 9, 3: 9}, ISIC_CLASSES)
    with pytest.raises(ShardError, match=r"no class of set made is left.*choose an episodes.scheme that has base"):
        EpisodeSource(packed, fold_of("isic", 0, packed).base, Policy(draw="round_robin"), 1, seed=0)


# Object crops


def crops_of(*photographs: tuple[int, ...]) -> Manifest:
    """Photograph p has a crop for each number: 1 shows both classes, 0 only class 2."""
    samples = [
        SampleEntry(
            key=f"p{p}_{crop}",
            shard=0,
            offset=0,
            length=1,
            height=9,
            width=9,
            crop_of=f"p{p}",
            classes={1: 5, 2: 5} if has else {2: 5},
        )
        for p, crops in enumerate(photographs)
        for crop, has in enumerate(crops)
    ]
    return Manifest(name="made", classes={1: "mug:rim", 2: "mug:base"}, samples=samples)


@pytest.mark.parametrize("draw", ["class_image", "round_robin", "every_pair", "every_image", "image_class"])
@pytest.mark.parametrize("repeat", [True, False])
def test_no_episode_has_two_crops_of_one_photograph(draw, repeat):
    packed = crops_of((1, 1, 1), (1, 0), (0, 1, 1), (1,), (0, 0))
    source = EpisodeSource(packed, (1, 2), Policy(draw=draw, min_area=0, repeat_supports=repeat), 3, seed=0)
    for episode in map(source.draw, range(300)):
        photographs = [packed.samples[i].crop_of for i in (episode.query, *episode.supports)]
        assert photographs[0] not in photographs[1:]
        assert repeat or len(set(photographs)) == 4
        assert all(episode.class_id in packed.samples[i].classes for i in (episode.query, *episode.supports))


def test_photographs_are_uniform_whatever_their_crops():
    packed = crops_of((1,) * 8, (1, 0, 0), (1, 1))
    source = EpisodeSource(packed, (1,), Policy(draw="class_image", min_area=0), 1, seed=0)
    episodes = [source.draw(number) for number in range(3000)]
    queries = Counter(packed.samples[e.query].crop_of for e in episodes)
    supports = Counter(packed.samples[s].crop_of for e in episodes for s in e.supports)
    assert all(abs(n - 1000) < 110 for n in (*queries.values(), *supports.values()))  # 4 standard deviations
    of_the_first = Counter(e.query for e in episodes if packed.samples[e.query].crop_of == "p0")
    assert len(of_the_first) == 8 and all(70 < n < 180 for n in of_the_first.values())  # of 125


def test_crops_are_counted_by_their_photographs():
    packed = crops_of((1, 1, 1), (1, 0), (0,))
    with pytest.raises(ShardError, match=r"need 3 images a class .* mug:rim has 2 of its 2 images"):
        EpisodeSource(packed, (1,), Policy(draw="class_image", min_area=0), 2, seed=0)
    source = EpisodeSource(packed, (1, 2), Policy(draw="round_robin", min_area=0), 1, seed=0)
    assert len(source) == 5  # photographs with class 1, and with class 2


# Protocols


@pytest.mark.parametrize(
    "scheme, draw, episodes, passes, repeat, ignore",
    [
        ("lvis", "round_robin", 2300, None, True, False),
        ("paco", "class_image", 2500, None, True, False),
        ("pascal_part", "round_robin", 2500, 1, False, False),
        ("deepglobe", "round_robin", 600, None, True, False),
        ("isic", "round_robin", 600, None, True, False),
        ("isaid", "every_pair", 5000, 1, True, True),
    ],
)
def test_published_figures_of_gfsam(scheme, draw, episodes, passes, repeat, ignore):
    protocol = protocol_of("gfsam", scheme)
    assert (protocol.draw, protocol.episodes, protocol.passes) == (draw, episodes, passes)
    assert (protocol.repeat_supports, protocol.ignore_255) == (repeat, ignore)
    assert (protocol.seeds, protocol.resize, protocol.resolution, protocol.min_area) == ((0,), "squash", 1024, 0)
    assert protocol.note and "\n" not in protocol.note and ". " not in protocol.note
    assert protocol_of("default", scheme).min_area == 0
    for name in set(PROTOCOLS) - {"default", "gfsam"}:
        with pytest.raises(ConfigError, match=f"eval.protocol {name} was never used on .*: choose default, gfsam"):
            protocol_of(name, scheme)


def test_pascal_part_stops_after_the_pairs_of_its_superclass():
    packed = shown({1: 6, 2: 4}, {1: "animals/cat+HEAD", 2: "animals/dog+LEG", 3: "indoor/bottle+CAP"}, crops=3)
    protocol = protocol_of("gfsam", "pascal_part")
    episodes = evaluation_episodes(packed, (1, 2), protocol, 1, protocol.episodes, (0,), passes=protocol.passes)
    assert [e.class_id for e in episodes] == [1, 2] * 5


def test_isaid_meets_each_pair_once():
    classes = {i: {1: ISAID_ENDS[0], 15: ISAID_ENDS[1]}.get(i, f"class {i}") for i in range(1, 16)}
    packed = shown(dict.fromkeys(classes, 3), classes)
    protocol = protocol_of("gfsam", "isaid")
    episodes = evaluation_episodes(packed, range(1, 6), protocol, 1, protocol.episodes, (0,), passes=protocol.passes)
    assert [packed.samples[e.query].key for e in episodes] == sorted(
        sample.key for sample in packed.samples if min(sample.classes) < 6
    )
