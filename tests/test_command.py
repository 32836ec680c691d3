"""The frame of a launcher: errors in one line, and an import that costs a data worker nothing."""

import errno
import subprocess
import sys

import pytest

from fss.command import command
from fss.errors import UserError
from tests.support.places import ROOT


def test_a_users_error_is_one_line_and_exit_code_2(capsys):
    @command
    def main(argv):
        raise UserError("the mask of a.jpg is 3x4: make it 5x6")

    assert main([]) == 2
    assert capsys.readouterr().err == "error: the mask of a.jpg is 3x4: make it 5x6\n"


def test_a_full_disk_is_one_line_too(capsys):
    @command
    def main(argv):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl")

    assert main([]) == 2
    assert "runs/a/metrics.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("launcher", ["pretrain_prior", "meta_train", "train_base"])
def test_a_launcher_with_data_workers_is_light_to_import(launcher):
    program = f"import sys, launch.{launcher}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
