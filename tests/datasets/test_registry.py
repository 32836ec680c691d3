"""The registry of data sets agrees with the packers, the protocols and the command line."""

from dataclasses import fields
from typing import get_args

import pytest

from fss.data.episodes import SplitConfig
from fss.data.protocol import PROTOCOLS, Protocol, protocol_of
from fss.datasets import DATASETS, SchemeName, dataset_named
from fss.datasets.base import ProtocolChanges, PublishedTest
from fss.errors import ConfigError
from launch.pack import SOURCES
from shards.format import Manifest, SampleEntry


@pytest.mark.parametrize("name", DATASETS)
def test_an_entry_is_complete(name):
    dataset = DATASETS[name]
    assert dataset.name == name and dataset.title and dataset.rule and dataset.folds >= 1
    assert dataset.packers and set(dataset.packers) <= set(SOURCES)
    assert dataset.protocols is None or set(dataset.changes) <= set(dataset.protocols) <= set(PROTOCOLS)
    if dataset.published_test:
        assert len(dataset.published_test.pairs) == dataset.folds


@pytest.mark.parametrize("name", DATASETS)
def test_a_scheme_is_known_to_the_option_and_to_the_protocols(name):
    assert name in get_args(SchemeName)
    assert SplitConfig(scheme=name).scheme == name
    assert protocol_of("default", name).name == "default"


def test_changes_are_fields_of_a_protocol():
    assert ProtocolChanges.__annotations__.keys() <= {field.name for field in fields(Protocol)}


def test_an_unknown_scheme_is_named_with_its_choices():
    with pytest.raises(ConfigError, match=r"^episodes.scheme is pascl, which is not known: choose one of pascal, coco"):
        dataset_named("pascl")


def test_published_sizes_count_pairs_of_enough_pixels():
    areas = [{1: 99, 2: 100}, {2: 500, 3: 100}, {1: 100}]
    samples = [
        SampleEntry(key=str(i), shard=0, offset=0, length=1, height=9, width=9, classes=classes)
        for i, classes in enumerate(areas)
    ]
    packed = Manifest(name="made", classes={1: "a", 2: "b", 3: "c"}, samples=samples)
    test = PublishedTest(pairs=(3, 200), min_area=100)
    assert test.count(packed, (1, 2)) == 3 and PublishedTest(pairs=(3,), min_area=0).count(packed, (1, 2)) == 4
    assert test.matches(3, fold=0) and not test.matches(4, fold=0)
    assert test.matches(209, fold=1) and test.matches(191, fold=1)
    assert not test.matches(211, fold=1) and not test.matches(189, fold=1)
