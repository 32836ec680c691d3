"""What can be said of the job scripts without a cluster."""

import shutil
import subprocess

import pytest

from tests.places import ROOT

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_it(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    found = subprocess.run(
        ["shellcheck", "-x", "-P", ".", *SCRIPTS, "tests/slurm/cluster.sh"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", [path for path in SCRIPTS if "#SBATCH" in path.read_text()], ids=lambda p: p.name)
def test_every_job_survives_what_clusters_do(script):
    text = script.read_text()
    for line in ("--signal=B:USR1@120", "--requeue", "--open-mode=append", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}\n" in text
    assert "--partition" not in text and "--account" not in text, "that is said in env.sh"
    outside = subprocess.run(["bash", script], cwd=ROOT, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert outside.returncode == 1 and "sbatch" in outside.stderr


def dry_run(*words: str, **settings: str) -> list[str]:
    done = subprocess.run(
        ["slurm/pipeline.sh", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PATH": "/usr/bin:/bin", **settings},
    )    # fmt: skip
    return done.stdout.splitlines()


def test_the_pipeline_says_what_it_would_submit():
    lines = dry_run("--nodes", "4")
    named = [next(word for word in line.split() if word.startswith("slurm/")) for line in lines]
    assert named == [f"slurm/{name}.sh" for name in (
        "pack", "pretrain_prior", "coco_fold", "coco_fold", "base_fold", "coco_fold", "coco_fold", "report",
    )]    # fmt: skip
    assert "--dependency" not in lines[0]
    assert "--dependency=afterok:<job 1>" in lines[1] and "--dependency=afterok:<job 2>" in lines[2]
    assert "--dependency=aftercorr:<job 3>" in lines[3] and "PART=evaluate" in lines[3]
    assert "--dependency=afterok:<job 1>" in lines[4] and "--dependency=aftercorr:<job 5>" in lines[5]
    assert "--dependency=afterok:<job 4>:<job 7>" in lines[7]
    assert all("--nodes 4" in line for line in lines[1:7])


def test_a_method_that_needs_no_other_job_waits_for_the_data_only():
    lines = dry_run(METHODS="mshnet")
    assert [line.rpartition("slurm/")[2] for line in lines] == [
        "pack.sh", "coco_fold.sh", "coco_fold.sh", "report.sh",
    ]    # fmt: skip
    assert "--dependency=afterok:<job 1>" in lines[1]
