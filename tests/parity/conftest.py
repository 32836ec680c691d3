"""`pytest tests/parity --golden DIR`: every recorded file under DIR becomes a test whose id holds the file's stem."""

from pathlib import Path

import pytest

from tests.support.places import SHARED, stem

DEFAULT = SHARED / "golden"
QUICK = 3  # of the files that take long; the others are marked slow
SUFFIXES = (".npz", ".tsv", ".tsv.gz")


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        metavar="DIR",
        default=None,
        help=f"folder of recorded reference runs; a file that no test knows fails (default: {DEFAULT.name}/ of the "
        "folder shared/ beside the checkout, where unknown files are skipped)",
    )


@pytest.fixture(scope="session")
def strict(pytestconfig) -> bool:
    """Whether the folder was named by the user, who then means all of it."""
    return _given(pytestconfig) is not None


def _given(config) -> str | None:
    return config.getoption("--golden", default=None)


def pytest_generate_tests(metafunc):
    if "golden" not in metafunc.fixturenames:
        return
    given = _given(metafunc.config)
    folder = Path(given) if given else DEFAULT
    if given and not folder.is_dir():
        raise pytest.UsageError(f"--golden {folder}: no such folder")
    files = sorted(p for p in folder.rglob("*") if p.name.endswith(SUFFIXES)) if folder.is_dir() else []
    if given and not files:
        raise pytest.UsageError(f"--golden {folder}: no {', '.join(SUFFIXES)} file in it")
    missing = pytest.mark.skip(reason=f"no recorded runs in {folder}: give --golden DIR")
    ids = [p.relative_to(folder).with_name(stem(p)).as_posix() for p in files]
    smallest = sorted((p for p in files if _takes_long(p)), key=lambda p: (p.stat().st_size, p))[:QUICK]
    rows = [
        pytest.param(path, marks=pytest.mark.slow) if _takes_long(path) and path not in smallest else path
        for path in files
    ]
    metafunc.parametrize("golden", rows or [pytest.param(None, marks=missing)], ids=ids or ["none"])


def _takes_long(path: Path) -> bool:
    """Is it an episode on photographs, seconds of two networks and a hundred masks?"""
    return path.name.startswith("ep_")
