"""Where things lie: the checkout, and beside a developer's what comes with no release (recorded runs, photographs)."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"


def shared(name: str) -> Path:
    """A file or folder of ../shared; skips the test where there is none."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"there is no ../shared/{name} beside this checkout: only the developers' machines have it")
    return path
