"""Write `files/`: what the version before the renamed options left on disk. See README.md."""

import json
import shutil
import sys
from pathlib import Path

import torch
from fss.engine.checkpoint import CheckpointConfig, Checkpoints, State
from fss.engine.dist import World
from fss.engine.optim import OptimConfig, build_optimizer
from fss.engine.run import PlaceConfig
from safetensors import safe_open
from safetensors.torch import save_file
from tests.data.labelled import rectangles
from tests.engine.toy import Toy, batches

from launch import evaluate, meta_train, pretrain_prior, train_base

COMMON = "--run.device cpu --run.world 1 --run.threads 1 --log.wandb off --log.every 1 --data.workers 0"
STEPS = "--optim.steps 2 --checkpoint.every 1 --checkpoint.keep 2 --method.backbone resnet18"
FOLD = "--method.size 33 --episodes.scheme interleaved"
EPISODES = f"{FOLD} --validate.split none --method.dim 8 --episodes.min_area 0 --data.batch 2"
VIEWS = "--method.view_size 32 --method.patch_size 32 --method.queue 8 --method.local_queue 8 --probe.size 32"
JOBS = {
    "prior": (pretrain_prior, f"{STEPS} {VIEWS} --data.batch 4 --data.window 1 --optim.lr_batch 4"),
    "base": (
        train_base,
        f"{STEPS} {FOLD} --validate.split none --data.batch 4 --validate.share 0 --augment.keep 0",
    ),
    "qgnet": (
        meta_train,
        f"{STEPS} {EPISODES} --method.prior_map on --method.prior_weights prior/prior.safetensors",
    ),
    "msanet": (
        meta_train,
        f"--config configs/meta/msanet_small_cpu.yaml {STEPS} {EPISODES} --method.stem torchvision "
        "--method.base_weights base/base.safetensors",
    ),
    "evaluation": (
        evaluate,
        f"{FOLD} --method prototype --method.backbone resnet18 --eval.episodes 6 --eval.seeds [7] --eval.min_area 0",
    ),
}
TEXTS = ("config.yaml", "run.json", "metrics.jsonl", "status.json", "results.json", "episodes.tsv")


class OneRank:
    """The collectives of a rank by itself, of which the toy uses one."""

    def mean_(self, tensors: list[torch.Tensor]) -> None:
        pass


def record_checkpoints(folder: Path) -> None:
    """Checkpoints 3 and 5 of a toy."""
    torch.manual_seed(3)
    method = Toy(4)
    optimizer = build_optimizer(method, OptimConfig(lr=0.1))
    state, batch = State(name="toy", method=method, optimizer=optimizer), batches(0, 0, 1)
    world = World.at(PlaceConfig(world=1, device="cpu"))
    for step in range(5):
        loss, _ = method.loss(next(batch), None, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(OneRank())
        if step + 1 in (3, 5):
            Checkpoints(folder, CheckpointConfig(keep=5), world).save(state, step + 1)
    world.close()


def record_run(name: str, out: Path) -> None:
    """Run a job, and keep what is small: text, and headers of exports with one number for their tensors."""
    launcher, options = JOBS[name]
    words = [*options.split(), *COMMON.split(), "--data.shards", "shards", "--run.dir", name]
    assert launcher.main(words) == 0
    (out / name).mkdir()
    for path in map(Path(name).joinpath, TEXTS):
        if path.exists():
            shutil.copy(path, out / path)
    environment = json.loads((Path(name) / "environment.jsonl").read_text().splitlines()[-1])
    script = Path(launcher.__file__).name
    environment |= {"host": "node", "command": " ".join([f"launch/{script}", *words])}
    (out / name / "environment.jsonl").write_text(json.dumps(environment) + "\n")
    for path in Path(name).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            save_file({"weight": torch.zeros(1)}, out / path, file.metadata())
    if name == "evaluation":
        (out / name / "report").mkdir()
        shutil.copy(f"{name}/report/report.json", out / name / "report")
        shutil.copytree(f"{name}/episodes", out / name / "episodes")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    rectangles(Path("shards"), [1, 2, 3, 4, 2, 3, 4, 2])
    shutil.copytree("shards", out / "shards", ignore=shutil.ignore_patterns(".lock"))
    record_checkpoints(out / "checkpoints")
    for name in JOBS:
        record_run(name, out)
