"""The job scripts without a cluster: syntax, what they submit, and what they start."""

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.places import ROOT

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
    assert "--partition" not in text and "--account" not in text, "env.sh sets them"
    outside = subprocess.run(["bash", script], cwd=ROOT, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert outside.returncode == 1 and "sbatch" in outside.stderr


def dry_run(*words: str, **settings: str) -> list[str]:
    done = subprocess.run(
        ["slurm/pipeline.sh", "--dry-run", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", **settings},
    )
    return done.stdout.splitlines()


def test_the_pipeline_prints_what_it_would_submit():
    lines = dry_run("--nodes", "4")
    named = [next(word for word in line.split() if word.startswith("slurm/")) for line in lines]
    assert named == [
        f"slurm/{name}.sh"
        for name in (
            "pack",
            "pretrain_prior",
            "coco_fold",
            "coco_fold",
            "base_fold",
            "coco_fold",
            "coco_fold",
            "report",
        )
    ]
    assert "--dependency" not in lines[0]
    assert "--dependency=afterok:<job 1>" in lines[1] and "--dependency=afterok:<job 2>" in lines[2]
    assert "--dependency=aftercorr:<job 3>" in lines[3] and "PART=evaluate" in lines[3]
    assert "--dependency=afterok:<job 1>" in lines[4] and "--dependency=aftercorr:<job 5>" in lines[5]
    assert "--dependency=afterok:<job 4>:<job 7>" in lines[7]
    assert all("--nodes 4" in line for line in lines[1:7])


def test_a_method_that_needs_no_other_job_waits_for_the_data_only():
    lines = dry_run(METHODS="mshnet")
    assert [line.rpartition("slurm/")[2] for line in lines] == [
        "pack.sh",
        "coco_fold.sh",
        "coco_fold.sh",
        "report.sh",
    ]
    assert "--dependency=afterok:<job 1>" in lines[1]


def pack_sets(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()


def test_the_pipeline_begins_behind_the_packing_where_both_sets_are_packed(tmp_path):
    sets = {"COCO_SHARDS": str(tmp_path / "train"), "COCO_VAL_SHARDS": str(tmp_path / "val")}
    pack_sets(tmp_path / "train")
    assert "slurm/pack.sh" in dry_run(**sets)[0] and "--dependency=afterok:<job 1>" in dry_run(**sets)[1]
    pack_sets(tmp_path / "val")
    message, *lines = dry_run(METHODS="qgnet msanet mshnet", **sets)
    assert message.startswith(f"{tmp_path}/train and {tmp_path}/val are packed") and "PACK=yes" in message
    waits = [
        "",
        "afterok:<job 1>",
        "aftercorr:<job 2>",
        "",
        "aftercorr:<job 4>",
        "aftercorr:<job 5>",
        "",
        "aftercorr:<job 7>",
        "afterok:<job 3>:<job 6>:<job 8>",
    ]
    assert [line.partition("--dependency=")[2].partition(" --")[0].partition(" slurm")[0] for line in lines] == waits
    assert "slurm/pack.sh" in dry_run(PACK="yes", **sets)[0]


def test_packing_and_report_ask_for_no_gpu():
    sets = {"COCO_SHARDS": "/nowhere/train", "COCO_VAL_SHARDS": "/nowhere/val"}
    pack, *others, report = dry_run(CPU_PARTITION="cpu", GPUS_PER_NODE="a100:8", CPUS_PER_GPU="8", **sets)
    for line in (pack, report):
        assert line.startswith("env -u SBATCH_GPUS_PER_NODE -u SBATCH_GRES -u SBATCH_CPUS_PER_GPU sbatch ")
        assert "--partition=cpu" in line
    assert "--cpus-per-task=16" in pack
    assert not [line for line in others if "partition" in line or not line.startswith("sbatch ")]
    assert "--cpus-per-task=4" in dry_run(PACK_CPUS="4", **sets)[0]
    embedded = dry_run()
    assert not [line for line in embedded if "partition" in line or "cpus-per-task" in line], "any cluster has these"


STANDS_IN = {
    "scontrol": "",
    "python": 'echo "$@" >>"$STARTED"',
    "srun": """
        echo "$@" >>"$STARTED"
        while [[ $1 != --run.dir ]]; do shift; done
        mkdir -p "$2"
        echo '{"status": "finished"}' >"$2/status.json"
    """,
}


class Node:
    """Runs job scripts with stand-ins for SLURM's commands and for what a job starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        commands = folder / "venv" / "bin"
        commands.mkdir(parents=True)
        for name, body in STANDS_IN.items():
            (commands / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (commands / name).chmod(0o755)

    def job(self, script: str, *words: str, **settings: str) -> subprocess.CompletedProcess:
        slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "job", "SLURM_JOB_NODELIST": "v1", "SLURM_CPUS_ON_NODE": "2"}
        places = {name: str(self.folder / name.lower()) for name in ("VENV", "RUNS", "STARTED")}
        return subprocess.run(
            ["bash", f"slurm/{script}", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin"} | slurm | places | settings,
        )

    def starts(self, script: str, *words: str, **settings: str) -> list[str]:
        """What a job starts that ends well, a line each."""
        started = self.folder / "started"
        started.write_text("")
        done = self.job(script, *words, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return started.read_text().splitlines()


@pytest.fixture
def node(tmp_path) -> Node:
    node = Node(tmp_path)
    for made in ("prior/prior.safetensors", "base_fold0/best.safetensors"):
        path = tmp_path / "runs" / made
        path.parent.mkdir(parents=True)
        path.touch()
    return node


COCO = {"COCO_SHARDS": "TRAIN", "COCO_VAL_SHARDS": "VAL"}


@pytest.mark.parametrize(
    ("script", "method"),
    [("base_fold.sh", ""), *(("coco_fold.sh", method) for method in ("qgnet", "bam", "msanet", "mshnet"))],
)
def test_training_validates_as_the_commands_of_the_readme_do(node, script, method):
    training = {"METHOD": method, "PART": "train"}
    (line,) = node.starts(script, **training, **COCO)
    assert "--data.shards TRAIN --episodes.fold 0 --validate.shards VAL " in line
    (line,) = node.starts(script, **training, COCO_SHARDS="TRAIN")
    assert "--validate" not in line
    (line,) = node.starts(script, "--validate.shards", "MINE", **training, **COCO)
    assert line.index("--validate.shards VAL") < line.index("--validate.shards MINE"), "the later one wins"


def test_embedded_data_know_no_other_images_to_validate_on(node):
    (line,) = node.starts("coco_fold.sh", PART="train", COCO_VAL_SHARDS="VAL")
    assert "configs/meta/embedded.yaml" in line and "shards" not in line


def test_each_recipe_gets_weights_of_its_own_stem(node):
    weights = {"PART": "train", "BACKBONE_WEIGHTS": "DEEP", **COCO}
    for method, expected in (("qgnet", ["DEEP"]), ("msanet", []), ("mshnet", [])):
        (line,) = node.starts("coco_fold.sh", METHOD=method, **weights)
        assert after("--method.backbone_weights", line) == expected, method
    (line,) = node.starts("coco_fold.sh", METHOD="mshnet", TORCHVISION_WEIGHTS="PLAIN", **weights)
    assert after("--method.backbone_weights", line) == ["PLAIN"]
    (line,) = node.starts("base_fold.sh", TORCHVISION_WEIGHTS="PLAIN", **weights)
    assert after("--method.backbone_weights", line) == ["DEEP"]


def after(option: str, line: str) -> list[str]:
    words = line.split()
    return [value for word, value in itertools.pairwise(words) if word == option]


@pytest.mark.parametrize(
    ("option", "asked"),
    [("GPUS_PER_NODE", "8"), ("GPUS_PER_NODE", "a100:8"), ("GRES", "gpu:8"), ("GRES", "gpu:a100:8")],
)
def test_gpus_are_counted_whatever_their_type(node, option, asked):
    (line,) = node.starts("pretrain_prior.sh", **{option: asked}, SLURM_GPUS_ON_NODE="8")
    assert after("--run.world_size", line) == ["8"] and after("--run.device", line) == ["cuda"]
    refused = node.job("pretrain_prior.sh", **{option: asked}, SLURM_GPUS_ON_NODE="4")
    assert refused.returncode == 1
    assert f"env.sh asks for {asked} GPUs a node and this node gives 4" in refused.stderr


def test_what_is_packed_needs_no_raw_images(node, tmp_path):
    train, val, raw = (tmp_path / name for name in ("train", "val", "raw"))
    settings = {"COCO_SHARDS": str(train), "COCO_VAL_SHARDS": str(val), "COCO_RAW": str(raw)}
    pack_sets(train)
    (line,) = node.starts("pack.sh", **settings)
    assert after("--out", line) == [str(val)] and after("--images", line) == [f"{raw}/val2014"]
    pack_sets(val)
    assert not node.starts("pack.sh", **settings)
    assert node.job("pack.sh", **settings).stdout.count("left as it is") == 2
    (raw / "train2014").mkdir(parents=True)
    (line,) = node.starts("pack.sh", **settings)
    assert after("--out", line) == [str(train)], "what can be compared is"


def test_env_passes_its_first_part_to_sbatch():
    settings = {"GRES": "gpu:a100:8", "MEMORY_PER_NODE": "400G", "CPUS_PER_GPU": "8", "PARTITION": "long"}
    printed = subprocess.run(
        ["bash", "-c", "source slurm/env.sh; env"], cwd=ROOT, capture_output=True, text=True, env=settings, check=True
    ).stdout.splitlines()
    assert {line for line in printed if line.startswith("SBATCH_")} == {
        "SBATCH_GRES=gpu:a100:8",
        "SBATCH_MEM_PER_NODE=400G",
        "SBATCH_CPUS_PER_GPU=8",
        "SBATCH_PARTITION=long",
        "SBATCH_REQUEUE=1",
    }


def test_srun_gets_the_options_of_a_site(node):
    (line,) = node.starts("pretrain_prior.sh", SRUN_OPTIONS="--container-image=fss.sqsh --container-mounts=/data")
    options, _, launched = line.partition(" bash slurm/node.sh ")
    assert options.endswith("--container-image=fss.sqsh --container-mounts=/data") and launched
