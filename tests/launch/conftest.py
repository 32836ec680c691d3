"""Fixtures of the launchers' tests."""

from pathlib import Path

import pytest

from fss.train.tasks.task import ValidatedTask
from tests.support.labelled import rectangles
from tests.support.launching import pack_unlabelled


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> Path:
    """20 synthetic images in two shards, with both kinds of superpixels."""
    return pack_unlabelled(tmp_path_factory.mktemp("packed") / "synthetic")


@pytest.fixture(scope="session")
def coloured(tmp_path_factory) -> Path:
    """16 images of four classes, in one shard; fold 0 of the interleaved scheme has the class that is in all novel."""
    return rectangles(tmp_path_factory.mktemp("coloured") / "rectangles", [1, 2, 3, 4] * 4).folder


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """Without the pictures that a validation in this process draws: they take longer than a few steps."""
    monkeypatch.setattr(ValidatedTask, "examples", lambda *_: ())
