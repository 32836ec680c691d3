"""Episode lists: published ones on sets of their file names, and our own written and read again."""

import gzip

import numpy as np
import pytest

from fss.data.episode_lists import read_list, write_list
from fss.data.episodes import Episode, Policy, evaluation_episodes
from fss.data.transforms import read_labelled
from fss.datasets.fss1000 import fss1000_split
from shards.format import Manifest, ShardError
from shards.sources.voc import CLASSES as VOC
from tests.support.manifests import manifest, pack_listed
from tests.support.places import shared

COCO = {i: f"class {i}" for i in range(1, 81)}
FSS = dict(enumerate(sorted(fss1000_split()), start=1))


def named(keys: dict[str, set[int]], classes: dict[int, str]) -> Manifest:
    made = manifest(list(keys.values()), classes)
    for sample, key in zip(made.samples, keys, strict=True):
        sample.key = key
    return made


PUBLISHED = {
    "pascal": ("0\t2007_000033\t2010_001174\n", {"2010_001174": {1, 15}, "2007_000033": {1}}, VOC, 1),
    "coco": (
        "72\tval2014/COCO_val2014_000000507081.jpg\tval2014/COCO_val2014_000000486122.jpg\n",
        {"COCO_val2014_000000486122": {73}, "COCO_val2014_000000507081": {73}},
        COCO,
        73,
    ),
    "coco_2017": (
        "72\tval2014/COCO_val2014_000000507081.jpg\ttrain2014/COCO_train2014_000000486122.jpg\n",
        {"000000486122": {73}, "000000507081": {73}},
        COCO,
        73,
    ),
    "fss": (
        "760\tabe's_flyingfish/10.jpg\t3.jpg\n",
        {"abe_s_flyingfish_3": {3}, "abe_s_flyingfish_10": {3}, "abacus_3": {2}, "abacus_10": {2}},
        FSS,
        3,
    ),
    "isaid": (
        "4\tP2085_0_256_824_1080\tP2168_824_1080_1648_1904\n",
        {"P2168_824_1080_1648_1904": {5}, "P2085_0_256_824_1080": {5}},
        {i: str(i) for i in range(1, 16)},
        5,
    ),
    "paths": (
        "0\tVOC2012/JPEGImages/2007_000033.jpg\tVOC2012/JPEGImages/2010_001174.jpg\n",
        {"JPEGImages_2010_001174": {1}, "JPEGImages_2007_000033": {1}},
        VOC,
        1,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_meet_our_keys(name, tmp_path):
    text, keys, classes, class_id = PUBLISHED[name]
    path = tmp_path / "list.tsv"
    path.write_text(text)
    assert read_list(path, named(keys, classes), shots=1) == [Episode(0, 0, class_id, 1, (0,))]


HELD = [{1, 2}, {1}, {2}, {1, 2}, {2}, {1}]


@pytest.mark.parametrize("suffix", ["tsv", "tsv.gz"])
def test_our_own_there_and_back(suffix, tmp_path):
    made = manifest(HELD, {1: "cat", 2: "dining table"})
    episodes = evaluation_episodes(made, (1, 2), Policy(draw="class_image"), 2, 20, seeds=(0, 7))
    path = tmp_path / f"episodes.{suffix}"
    write_list(path, episodes, made)
    assert read_list(path, made, shots=2) == episodes
    assert path.read_bytes().startswith(b"\x1f\x8b") == suffix.endswith("gz")


def test_a_list_typed_by_hand(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("class\tquery\tsupport\r\ncat\ts0001\ts0000\r\n\r\n2\ts0003\ts0002.jpg\r\n")
    made = manifest(HELD, {1: "cat", 2: "dog"})
    assert read_list(path, made, shots=1) == [Episode(0, 0, 1, 1, (0,)), Episode(0, 1, 2, 3, (2,))]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "lists no episodes"),
        ("cat s0001 s0000\n", "begins with 'cat s0001 s0000': give .* between tabs"),
        ("class\tquery\n", "give .* supports between tabs"),
        ("class\tquery\tsupport\tweight\n", r"columns \['class'.*'weight'\]"),
        ("class\tquery\tquery\tsupport\n", "one class, one query"),
        ("class\tquery\tsupport\tsupport\n", r"2 support\(s\), episodes.shots is 1: set it to 2"),
        ("0\ts0000\ts0001\ts0003\n", r"2 support\(s\), episodes.shots is 1: set it to 2"),
        ("class\tquery\tsupport\ncat\ts0001\n", "line 2 of .*list.tsv has 2 columns for 3"),
        (
            "0\ts0000\ts0001\n0\ts0000\ts0099\n",
            "line 2 of .*list.tsv names s0099, which set made of 6 samples does not",
        ),
        ("class\tquery\tsupport\nlion\ts0001\ts0000\n", "line 2 .* names the class 'lion', which set made"),
        ("7\ts0000\ts0001\n", "line 1 .* names class 7, counted from 0, of 2 in set made"),
        ("cat\ts0000\ts0001\n", "begins with 'cat': give a class number, or a header"),
        ("1\ts0000\ts0001\n", "line 1 .* wants dog in s0001, which shows none"),
        ("0\ts0000\ts0000\n", "has its query s0000 among its supports"),
        ("seed\tclass\tquery\tsupport\n-1\tcat\ts0001\ts0000\n", "seed '-1': give a whole number"),
    ],
)
def test_a_bad_list_is_an_error_of_one_sentence(text, message, tmp_path):
    path = tmp_path / "list.tsv"
    path.write_text(text)
    with pytest.raises(ShardError, match=message) as caught:
        read_list(path, manifest(HELD, {1: "cat", 2: "dog"}), shots=1)
    assert "\n" not in str(caught.value)


def test_a_damaged_or_missing_file(tmp_path):
    made = manifest(HELD)
    with pytest.raises(ShardError, match=r"none\.tsv: No such file"):
        read_list(tmp_path / "none.tsv", made, shots=1)
    whole = gzip.compress(b"0\ts0000\ts0001\n" * 100)
    for data in (whole[:-9], b"\x1f\x8b" + bytes(20), np.random.default_rng(0).bytes(100)):
        (tmp_path / "bad.tsv").write_bytes(data)
        with pytest.raises(ShardError, match=r"bad\.tsv is no list of episodes"):
            read_list(tmp_path / "bad.tsv", made, shots=1)


@pytest.mark.parametrize(
    "name, classes, shots",
    [
        ("pascal_fold0_5shot", VOC, 5),
        ("coco_fold1_1shot", COCO, 1),
        ("fss_5shot", FSS, 5),
    ],
)
def test_published_lists_on_a_packed_set(name, classes, shots, tmp_path):
    published = shared(f"golden/episodes/{name}.tsv.gz")
    shards, short = pack_listed(published, tmp_path / "packed", classes, rows=12)
    episodes = read_list(short, shards.manifest, shots)
    rows = [line.split("\t") for line in short.read_text().splitlines()]
    assert len(episodes) == len(rows) == 12
    for episode, (number, *names) in zip(episodes, rows, strict=True):
        in_folder = classes[episode.class_id] == names[0].split("/")[0]
        assert in_folder if classes is FSS else episode.class_id == int(number) + 1
        for index, file in zip((episode.query, *episode.supports), names, strict=True):
            stem = file.rpartition("/")[2].removesuffix(".jpg")
            assert shards.keys[index].endswith(stem)
            image, mask = read_labelled(shards, index, episode.class_id, "own")
            assert image.shape == (*mask.shape, 3) and (mask == 1).any()
