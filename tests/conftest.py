"""Fixtures that every part of the suite shares."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is there: `make test` has a process a core already


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Size, such as '256k' -> the root of an empty file system of that size; skips where none may be mounted."""
    folder = tmp_path / "disk"

    def mounted(size: str) -> Path:
        if not shutil.which("mount"):
            pytest.skip("there is no command mount on this machine, and this test wants a disk that fills")
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a disk that fills cannot be mounted by this user here: {done.stderr.strip()}")
        return folder

    yield mounted
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def context():
    """The distributed context of one process by itself."""
    from tests.support.contexts import joined  # not for every test: it imports torch

    one = joined()
    yield one
    one.close()


@pytest.fixture
def counted():
    """A second device that counts kernels and waits of the host: the class `Count` of tests.support.counted_device."""
    from tests.support.counted_device import counting

    with counting() as count:
        yield count
