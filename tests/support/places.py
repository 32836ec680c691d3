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


def stem(path: Path) -> str:
    """The name without its kind: dots in a folder's name or in front are part of it."""
    return path.name.removesuffix(".gz").rpartition(".")[0]
