"""Folds, image lists and evaluation episodes as they were published."""

import gzip
import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fss.data.episode_lists import read_list
from fss.data.episodes import EpisodeSource, Policy
from fss.data.folds import fold_of
from fss.datasets.fss1000 import fss1000_split
from shards.format import Manifest, SampleEntry
from shards.sources.voc import CLASSES as VOC_CLASSES

SCHEME_OF = {
    "pascal": "pascal",
    "coco_interleaved_fwb": "coco",
    "coco_contiguous_panet": "coco_contiguous",
    "hsnet_pascal0": "pascal",
    "hsnet_coco0": "coco",
}
FSS1000 = sorted(fss1000_split())
CLASSES = {
    "pascal": VOC_CLASSES,
    "coco": {i: {1: "person", 80: "toothbrush"}.get(i, f"class {i}") for i in range(1, 81)},
    "isaid": {i: f"class {i}" for i in range(1, 16)},
    "fss": dict(enumerate(FSS1000, start=1)),
}
FSS_ORDER = [name for part in ("train", "val", "test") for name in FSS1000 if fss1000_split()[name] == part]


def check_folds(path: Path) -> None:
    """Every class list `<convention>/<train|val>_<fold>` and every HSNet list of a file like folds.npz."""
    golden = dict(np.load(path, allow_pickle=False))
    for name, recorded in golden.items():
        if found := re.fullmatch(r"(\w+)/(train|val)_(\d+)", name):
            kind, part, number = found.groups()
            scheme = SCHEME_OF[kind]
            fold = fold_of(scheme, int(number), manifest(scheme.split("_")[0], {}))
            ours = np.array(fold.novel if part == "val" else fold.base)
            np.testing.assert_array_equal(ours, recorded + kind.endswith("0"), err_msg=name)
        elif found := re.fullmatch(r"hsnet_(pascal)_val_stem_fold(\d+)", name):
            check_pairs(golden, *found.groups(), recorded.tolist())
        elif found := re.fullmatch(r"hsnet_(coco)_val_imageid_fold(\d+)", name):
            check_pairs(golden, *found.groups(), [f"COCO_val2014_{image:012d}" for image in recorded.tolist()])
        elif found := re.fullmatch(r"hsnet_coco_trn_count_per_class_fold(\d+)", name):
            base = fold_of("coco", int(found[1]), manifest("coco", {})).base
            assert tuple(np.flatnonzero(recorded) + 1) == base, name


def check_pairs(golden: dict, data: str, fold: str, stems: list[str]) -> None:
    """One of HSNet's validation lists: its classes are the fold's novel ones, and one pass meets its pairs in order."""
    what = f"hsnet_{data}_val_*_fold{fold}"
    classes = (golden[f"hsnet_{data}_val_class0_fold{fold}"] + 1).tolist()
    pairs = list(zip(stems, classes, strict=True))
    packed = manifest(data, group(pairs))
    novel = fold_of(data, int(fold), packed).novel
    assert set(novel) == set(classes), what
    source = EpisodeSource(packed, novel, Policy(draw="every_pair", repeat_supports=True), 1, seed=0)
    met = [(packed.samples[e.query].key, e.class_id) for e in map(source.draw, range(len(source)))]
    assert met == sorted(pairs), what
    if data == "pascal":
        assert met == pairs, what
    if (counts := golden.get(f"hsnet_{data}_val_count_per_class_fold{fold}")) is not None:
        ours = Counter(class_id - 1 for _, class_id in met)
        assert [ours[class_id] for class_id in range(len(counts))] == counts.tolist(), what
        assert len(source.images) == golden[f"hsnet_{data}_val_unique_images_fold{fold}"], what
        lines = sorted((class_id - 1, f"val2014/{stem}.jpg") for stem, class_id in met)
        text = "\n".join(f"{class_id} {name}" for class_id, name in lines)
        assert hashlib.sha256(text.encode()).hexdigest() == golden[f"hsnet_{data}_val_sha256_fold{fold}"], what


def check_list(path: Path) -> None:
    """Every row of a published list `<data>[_fold<i>]_<K>shot`, read from a set that has its files and no others."""
    data, fold = re.fullmatch(r"(\w+?)(?:_fold(\d+))?_\d+shot", path.name.split(".")[0]).groups()
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else open(path)
    with opened as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    wanted = [fss_row(*row) if data == "fss" else plain_row(*row) for row in rows]
    packed = manifest(data, group((key, class_id) for class_id, keys in wanted for key in keys))
    episodes = read_list(path, packed, shots=len(rows[0]) - 2)
    ours = [(e.class_id, [packed.samples[i].key for i in (e.query, *e.supports)]) for e in episodes]
    assert ours == wanted
    assert [(e.seed, e.number) for e in episodes] == [(0, number) for number in range(len(rows))]

    if data in ("pascal", "coco", "fss"):
        novel = fold_of(data, int(fold or 0), packed).novel
        assert {class_id for class_id, _ in wanted} <= set(novel)
    if data in ("pascal", "fss"):  # their images come in order, as the policy for them does
        source = EpisodeSource(packed, novel, Policy(draw="every_pair", repeat_supports=True, min_area=0), 1, seed=0)
        met = [(e.class_id, packed.samples[e.query].key) for e in map(source.draw, range(len(rows)))]
        assert met == [(class_id, keys[0]) for class_id, keys in wanted]


def plain_row(number: str, *names: str) -> tuple[int, list[str]]:
    """Class id, and the keys of query and supports, which are the names of their files."""
    return int(number) + 1, [name.split("/")[-1].split(".")[0] for name in names]


def fss_row(number: str, query: str, *supports: str) -> tuple[int, list[str]]:
    """The same of FSS-1000, whose class is a folder; the list counts training, validation and test classes by name."""
    folder, first = query.split("/")
    assert FSS_ORDER[int(number)] == folder
    keys = [f"{folder}_{name.split('.')[0]}".replace("'", "_") for name in (first, *supports)]
    return FSS1000.index(folder) + 1, keys


def manifest(data: str, classes_of: dict[str, set[int]]) -> Manifest:
    """A manifest with the classes of `data` and samples by key, in no order of use."""
    samples = [
        SampleEntry(key=key, shard=0, offset=0, length=1, height=500, width=500, classes=dict.fromkeys(classes, 4096))
        for key, classes in reversed(classes_of.items())
    ]
    return Manifest(name=data, classes=CLASSES[data], samples=samples)


def group(pairs: Iterable[tuple[str, int]]) -> dict[str, set[int]]:
    """Key -> the classes that it is paired with."""
    found: dict[str, set[int]] = {}
    for key, class_id in pairs:
        found.setdefault(key, set()).add(class_id)
    return found
