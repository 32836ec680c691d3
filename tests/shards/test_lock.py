"""Packers on one machine wait for each other; those on several do not touch each other's files."""

import errno
import fcntl
import os
import subprocess
import sys
import time

import pytest

from shards.format import HOST, temporary_name
from shards.lock import lock
from shards.synthetic import synthetic
from shards.write import pack
from tests.support.shard_files import files


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK])
def test_file_systems_without_locks_are_packed_into(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, "no locks")

    pack(synthetic(2), tmp_path / "plain")
    monkeypatch.setattr(fcntl, "flock", flock)
    pack(synthetic(2), tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "plain")


def test_other_errors_of_a_lock_are_errors(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "trouble")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="trouble"), lock(tmp_path):
        pass


def test_only_abandoned_temporaries_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    running = os.getppid()
    old = [f".a.tar.{HOST}.{ended.pid}.tmp", f".b.json.{HOST}.{os.getpid()}.tmp", ".c.tar.elsewhere.7.tmp", ".d.7.tmp"]
    new = [f".a.tar.{HOST}.{running}.tmp", f".a.tar.elsewhere.{ended.pid}.tmp", ".e.tmp"]
    for name in old + new:
        (tmp_path / name).write_text("")
    for name in old[2:]:
        os.utime(tmp_path / name, (time.time() - 25 * 3600,) * 2)
    with lock(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".lock", *new])


def test_temporaries_name_machine_and_process(tmp_path):
    name = temporary_name(tmp_path / "a.tar").name
    assert name == f".a.tar.{HOST}.{os.getpid()}.tmp" and "." not in HOST
