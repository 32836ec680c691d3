"""The packed set of these tests."""

from pathlib import Path

import pytest

from tests.support.launching import pack_unlabelled


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> Path:
    """20 synthetic images in two shards, with both kinds of superpixels."""
    return pack_unlabelled(tmp_path_factory.mktemp("packed") / "synthetic")
