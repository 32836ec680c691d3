"""The job scripts on a real SLURM: arrays, two nodes, preemption, a dead rank, the chain of dependencies."""

import json
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from shards.synthetic import synthetic
from shards.write import pack
from tests.support.slurm_site import Site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
QUIET = "--log.wandb off --log.every 1 --run.check_every 2".split()
META = [
    *QUIET,
    *"--data.workers 0 --method.size 33 --method.dim 8 --optim.steps 4 --validate.episodes 2".split(),
]
PRETRAIN = [
    *QUIET,
    *"--data.workers 0 --data.batch 4 --method.view_size 32 --method.patch_size 32 --method.queue 40".split(),
    *"--method.local_queue 40 --probe.size 32 --probe.limit 40 --checkpoint.every 1000".split(),
]
EVALUATE = "--eval.episodes 4 --eval.seeds [0] --log.wandb off --data.workers 0"
SMALL_BASE = [*QUIET, *"--data.workers 0 --method.size 33 --optim.steps 2 --validate.every 2".split()]
SMALL_GFSAM = [
    *"--method.dino vits14 --method.dino_size 70 --method.sam vit_t --method.size 128 --eval.protocol gfsam".split(),
    *"--eval.episodes 4 --eval.resolution 128 --eval.min_area 0 --log.wandb off --data.workers 0".split(),
]


def world_sizes(site: Site, run: str) -> list[int]:
    """The number of ranks at each start of a run."""
    lines = (site.folder / "runs" / run / "environment.jsonl").read_text().splitlines()
    return [json.loads(line)["world_size"] for line in lines]


def test_an_array_over_folds_to_its_reports(site):
    """Training and evaluation in one job; test_the_pipeline_from_packing_to_one_report runs the default array."""
    site.sbatch("--array=0,3", "slurm/coco_fold.sh", *META, EVALUATE=EVALUATE)
    site.finish()
    for fold in (0, 3):
        assert site.status(f"qgnet_fold{fold}") == "finished"
        assert site.status(f"qgnet_fold{fold}_evaluation") == "finished"
        evaluation = site.folder / "runs" / f"qgnet_fold{fold}_evaluation"
        assert (evaluation / "report" / "index.html").exists()
        assert json.loads((evaluation / "results.json").read_text())["protocol"]["fold"].startswith(f"{fold}")


def test_a_fold_across_two_nodes(site):
    site.sbatch("--array=1", "--nodes=2", "slurm/coco_fold.sh", *META, EVALUATE=EVALUATE)
    site.finish()
    assert site.status("qgnet_fold1_evaluation") == "finished"
    assert world_sizes(site, "qgnet_fold1") == world_sizes(site, "qgnet_fold1_evaluation") == [2]
    (second,) = (site.folder / "slurm" / "logs").glob("*_node1.txt")
    assert "node 1 of 2: v2" in second.read_text()


def test_msanet_waits_for_the_base_learner_of_its_fold(site):
    base = site.sbatch("--array=1", "slurm/base_fold.sh", *SMALL_BASE)
    site.sbatch(
        "--array=1", f"--dependency=aftercorr:{base}", "slurm/coco_fold.sh", *META, METHOD="msanet", EVALUATE=EVALUATE
    )
    site.finish()
    assert site.status("base_fold1") == site.status("msanet_fold1") == "finished"
    assert site.status("msanet_fold1_evaluation") == "finished"
    seen_classes, taken = (
        json.loads((site.folder / "runs" / run / "run.json").read_text()) for run in ("base_fold1", "msanet_fold1")
    )
    assert (seen_classes["method.name"], taken["method.name"]) == ("base", "msanet")


def test_gfsam_is_evaluated_across_two_nodes(site):
    site.sbatch("--array=1", "--nodes=2", "slurm/eval_gfsam.sh", *SMALL_GFSAM)
    site.finish()
    assert site.status("gfsam_fold1_evaluation") == "finished"
    assert world_sizes(site, "gfsam_fold1_evaluation") == [2]
    results = json.loads((site.folder / "runs" / "gfsam_fold1_evaluation" / "results.json").read_text())
    assert results["protocol"]["fold"].startswith("1")


def test_zero_on_two_nodes_over_staged_shards(site, tmp_path):
    shards, scratch = tmp_path / "coco", tmp_path / "scratch"
    pack(synthetic(20), shards, superpixels=("slic",), samples_per_shard=12)
    small = ["--method.backbone", "resnet18", "--data.window", "1", "--optim.steps", "2"]
    site.sbatch(
        "--nodes=2",
        "slurm/pretrain_prior.sh",
        *PRETRAIN,
        *small,
        COCO_SHARDS=str(shards),
        STAGE_TO=str(scratch),
        KEEP_STAGED="yes",
        STRATEGY="zero1",
    )
    site.finish()
    assert site.status("prior") == "finished"
    assert world_sizes(site, "prior") == [2]
    (copy,) = (path for path in scratch.iterdir() if path.is_dir())  # the nodes share a disk here, so one copy
    assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in shards.iterdir())
    assert f"shards: {copy}" in (site.folder / "runs" / "prior" / "config.yaml").read_text()
    for node in range(2):
        assert f"node {node}: --data.shards {copy}" in site.log()
    assert "DeepSpeed" in site.log()


def test_preempted_and_killed_a_job_ends_as_an_undisturbed_one(site):
    steps = ["--optim.steps", "40"]
    site.sbatch("--nodes=2", "slurm/pretrain_prior.sh", *PRETRAIN, *steps, RUNS="whole")
    site.until("step 40/40")
    site.finish()

    site.sbatch("--nodes=2", "slurm/pretrain_prior.sh", *PRETRAIN, *steps, "--checkpoint.every", "4")
    first = site.folder / "runs" / "prior" / "metrics.jsonl"
    logged(first, 3)
    site.sbatch("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    site.until("back into the queue: saved as asked")
    stopped = last_step(first)
    site.until("start 2")
    logged(first, stopped + 5)
    kill_a_rank(site)
    site.finish()
    assert "prior broke off (attempt 1 of 3)" in site.log()
    assert site.status("prior") == "finished"
    one, other = (
        load_file(site.folder / runs / "prior" / "checkpoints" / "step_00000040" / "state.safetensors")
        for runs in ("whole", "runs")
    )
    assert one.keys() == other.keys()
    assert not [name for name in one if not one[name].equal(other[name])]


def last_step(path: Path) -> int:
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def logged(path: Path, step: int) -> None:
    """Wait until a run has logged `step`."""
    end = time.monotonic() + 600
    while last_step(path) < step:
        assert time.monotonic() < end, f"step {step} was not seen"
        time.sleep(0.1)


def kill_a_rank(site: Site) -> None:
    """kill -9 of rank 1 of the job that runs in this checkout."""
    for process in psutil.process_iter(["cwd", "environ"]):
        environment = process.info["environ"] or {}
        if process.info["cwd"] == str(site.folder) and environment.get("RANK") == "1":
            process.kill()
            return
    raise AssertionError("no rank 1 was found")


def test_a_time_limit_requeues_one_task_and_a_cancelled_one_stays_away(site):
    job = site.sbatch("--array=1-2", "slurm/coco_fold.sh", *META, "--optim.steps", "40", EVALUATE=EVALUATE)
    for fold in (1, 2):
        logged(site.folder / "runs" / f"qgnet_fold{fold}" / "metrics.jsonl", 3)
    site.call("scancel", f"{job}_1")
    site.call("scancel", "--batch", "--signal=USR1", f"{job}_2")  # what --signal=B:USR1@120 does before the limit
    site.until("start 2")
    site.finish()
    assert "resumed at step" in site.log()
    assert site.status("qgnet_fold2_evaluation") == "finished"
    assert site.log().count("start 2") == 1
    assert not (site.folder / "runs" / "qgnet_fold1_evaluation").exists()


def test_the_pipeline_from_packing_to_one_report(site):
    settings = {"TRAIN": " ".join(META), "PRETRAIN": " ".join([*PRETRAIN, "--optim.steps", "2"]), "EVALUATE": EVALUATE}
    site.call("bash", "slurm/pipeline.sh", METHODS="qgnet", **settings)
    site.finish()
    assert [site.status(f"qgnet_fold{fold}_evaluation") for fold in range(4)] == ["finished"] * 4
    assert list((site.folder / "runs" / "comparison").iterdir())
    trained = json.loads((site.folder / "runs" / "qgnet_fold3" / "run.json").read_text())
    assert trained["method.prior_map"] == "on"
