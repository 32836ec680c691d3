"""A process that has reported no earlier option yet, for every test."""

import pytest

from fss import compat


@pytest.fixture(autouse=True)
def nothing_reported(monkeypatch):
    monkeypatch.setattr(compat, "_reported", set())
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
