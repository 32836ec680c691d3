"""Fixtures of the tests of pages."""

import sys
from collections.abc import Iterator

import pytest

from fss.report import figure_style


@pytest.fixture(scope="module", autouse=True)
def command_line() -> Iterator[None]:
    """A command line of its own for every run: pages print it, and that of pytest must not decide what they contain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["launch/job.py"])
        yield


@pytest.fixture(scope="module")
def small_figures() -> Iterator[None]:
    """Figures of few pixels, for tests that do not measure them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure_style, "DPI", 40)
        yield
