"""Protocols have the published values and a note of what differs."""

from typing import get_args

import pytest

from fss.data.episodes import evaluation_episodes
from fss.data.protocol import PROTOCOLS, protocol_of
from fss.datasets.base import ProtocolName
from fss.errors import ConfigError
from tests.support.manifests import manifest

SEEDS = (510, 365, 382, 322, 988)


@pytest.mark.parametrize(
    "name, scheme, episodes, seeds, resize, resolution",
    [
        ("pfenet", "pascal", 5000, (321,), "compat", "original"),
        ("pfenet", "coco", 20000, (321,), "compat", "original"),
        ("bam", "pascal", 1000, SEEDS, "compat", "original"),
        ("bam", "coco", 1000, SEEDS, "compat", "original"),
        ("hdmnet", "pascal", 1000, (*SEEDS, 98, 742, 17, 595, 106), "compat", "original"),
        ("hdmnet", "coco", 10000, (*SEEDS, 98, 742, 17, 595, 106), "compat", "original"),
        ("hsnet", "pascal", 1000, (0,), "squash", 400),
        ("hsnet", "coco", 1000, (0,), "squash", 400),
        ("hsnet", "fss", 2400, (0,), "squash", 400),
        ("gfsam", "pascal", 1000, (0,), "squash", 1024),
        ("gfsam", "fss", 2400, (0,), "squash", 1024),
        ("mshnet", "pascal", 1000, (0,), "exact", "original"),
        ("default", "interleaved", 1000, (0, 1, 2, 3, 4), "exact", "original"),
    ],
)
def test_published_figures(name, scheme, episodes, seeds, resize, resolution):
    protocol = protocol_of(name, scheme)
    assert (protocol.name, protocol.episodes, protocol.seeds) == (name, episodes, seeds)
    assert (protocol.resize, protocol.resolution) == (resize, resolution)


def test_what_differs_between_data_sets():
    assert protocol_of("hsnet", "pascal").ignore_255 and not protocol_of("hsnet", "coco").ignore_255
    assert protocol_of("gfsam", "coco_contiguous") == protocol_of("gfsam", "coco")
    assert [protocol_of("gfsam", s).draw for s in ("pascal", "coco", "fss")] == [
        "every_pair",
        "class_image",
        "every_image",
    ]
    assert [protocol_of("default", s).min_area for s in ("pascal", "coco", "fss", "list")] == [2048, 2048, 0, 0]
    assert protocol_of("mshnet", "coco").labels == "own" and protocol_of("bam", "coco").labels == "flat"


@pytest.mark.parametrize("name", ["pfenet", "bam", "hdmnet", "mshnet"])
def test_not_every_protocol_is_for_every_set(name):
    with pytest.raises(ConfigError, match=f"eval.protocol {name} was never used on FSS-1000: choose default, hsnet"):
        protocol_of(name, "fss")


def test_each_has_a_name_and_a_note_of_one_sentence():
    assert set(PROTOCOLS) == set(get_args(ProtocolName))
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.note and "\n" not in protocol.note and ". " not in protocol.note


def test_a_protocol_is_a_policy_to_draw_by():
    images = manifest([{1}] * 30 + [{2}] * 20)
    protocol = protocol_of("pfenet", "pascal")
    drawn = evaluation_episodes(images, (1, 2), protocol, 1, protocol.episodes, protocol.seeds, passes=protocol.passes)
    assert [e.query for e in drawn] == list(range(50)) * 10  # ten passes and no more
    balanced = evaluation_episodes(images, (1, 2), protocol_of("default", "list"), 5, 100, (0,))
    assert sum(e.class_id == 1 for e in balanced) == 50
