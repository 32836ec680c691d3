"""The frame of a launcher: errors in one line, and an import that costs a data worker nothing."""

import errno
import subprocess
import sys

import pytest
import torch

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


def exhausted(device: str) -> None:
    """Ask torch's allocator for more than there is; a GPU's is replaced by the error that it raises."""
    if device == "cuda":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(("device", "remedy"), [("cuda", "optim.accumulate"), ("cpu", "data.workers")])
def test_a_lack_of_memory_is_one_line_with_the_peak_and_the_remedy(capsys, device, remedy):
    @command
    def main(argv):
        exhausted(device)

    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "out of memory, at a peak of" in line and "allocate" in line and remedy in line


def test_other_errors_keep_their_traceback():
    @command
    def main(argv):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        main([])


def test_a_job_may_open_as_many_files_as_the_system_allows():
    program = """
import resource
from fss.command import command

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
command(lambda argv: 0)([])
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize("launcher", ["pretrain_prior", "meta_train", "train_base"])
def test_a_launcher_with_data_workers_is_light_to_import(launcher):
    program = f"import sys, launch.{launcher}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
