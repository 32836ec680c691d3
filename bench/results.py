"""The comparison of docs/results.md: every method trained alike, and evaluated on the same episodes.

    python bench/results.py --shards DIR --backbone FILE --stem original --prior FILE --out runs/results

Trains a base learner once and every method of METHODS for every seed, evaluates all of them, and writes one page with
launch/report.py. What a run finished before is not done again, and what was cut off goes on where it stopped.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from launch.report import main as report

ROOT = Path(__file__).resolve().parent.parent
METHODS = {  # a row of the table -> the method's options
    "prototype": ("prototype",),
    "qgnet": ("qgnet",),
    "qgnet_off": ("qgnet", "--method.prior_map", "off"),
    "qgnet_shuffled": ("qgnet", "--method.prior_map", "shuffled"),
    "bam": ("bam",),
    "msanet": ("msanet",),
    "mshnet": ("mshnet",),
    "mshnet_cosine": ("mshnet", "--method.similarities", "cosine"),
    "mshnet_prototype": ("mshnet", "--method.similarities", "prototype"),
}

LEARN = [name for name in METHODS if name != "prototype"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="packed photographs of PASCAL's classes")
    parser.add_argument("--backbone", required=True, help="file of ResNet-50's ImageNet weights")
    parser.add_argument("--stem", default="torchvision", help="of that ResNet")
    parser.add_argument("--prior", help="export of launch/pretrain_prior.py, for qgnet")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--base-steps", type=int, default=300)
    parser.add_argument("--episodes", type=int, default=300, help="of the evaluation")
    return parser.parse_args()


def launch(given: argparse.Namespace, launcher: str, folder: Path, *options: str) -> None:
    """Run a launcher on the ranks asked for, one thread each, into `folder`; ends the comparison where it fails."""
    several = ["--multi_gpu"] if given.ranks > 1 else []
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *several,
        "--num_processes",
        str(given.ranks),
        *"--num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0".split(),
        str(ROOT / "launch" / launcher),
        "--run.dir",
        str(folder),
        "--run.world_size",
        str(given.ranks),
        *"--run.device cpu --run.precision bf16 --run.threads 1 --log.wandb off".split(),
        "--data.shards",
        given.shards,
        "--episodes.fold",
        str(given.fold),
        *options,
    ]
    print("$", " ".join(command[2:]), flush=True)
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "ACCELERATE_USE_CPU": "true"})


def frozen(given: argparse.Namespace, method: str) -> list[str]:
    """The frozen networks that a method begins with; trains the base learner where it is asked for."""
    stem = ["--method.stem", given.stem]
    if method not in ("bam", "msanet"):
        prior = ["--method.prior_weights", given.prior] if method == "qgnet" and given.prior else []
        return [*stem, "--method.backbone_weights", given.backbone, *prior]
    base = given.out / "base"
    if not (base / "base.safetensors").exists():
        launch(
            given,
            "train_base.py",
            base,
            "--config",
            "configs/base/small_cpu.yaml",
            *stem,
            "--method.backbone_weights",
            given.backbone,
            "--optim.steps",
            str(given.base_steps),
            "--validate.split",
            "none",
        )
    return [*stem, "--method.base_weights", str(base / "base.safetensors")]


def evaluated(given: argparse.Namespace, name: str, seed: int) -> Path:
    """The evaluation of one row and seed, its training done before where it has one."""
    method, *options = METHODS[name]
    of = given.out / f"{name}_{seed}"
    results = given.out / f"evaluate_{name}_{seed}"
    if (results / "results.json").exists():
        return results
    if method == "prototype":
        what = ["--method", method, "--method.size", "225", *frozen(given, method)]
    else:
        weights = of / f"{method}.safetensors"
        if not weights.exists():
            launch(
                given,
                "meta_train.py",
                of,
                "--config",
                f"configs/meta/{method}_small_cpu.yaml",
                *options,
                *frozen(given, name),
                "--run.seed",
                str(seed),
                "--optim.steps",
                str(given.steps),
                *"--data.batch 2 --validate.split none".split(),
            )
        what = ["--weights", str(weights)]
    launch(
        given,
        "evaluate.py",
        results,
        *what,
        *"--episodes.scheme pascal --eval.seeds [0]".split(),
        "--eval.episodes",
        str(given.episodes),
    )
    return results


def main() -> None:
    given = arguments()
    given.out = given.out.resolve()
    rows = [(name, seed) for name in given.methods for seed in (given.seeds if name in LEARN else [0])]
    runs = [evaluated(given, name, seed) for name, seed in rows]
    sys.exit(report([*map(str, runs), "--out", str(given.out / "comparison")]))


if __name__ == "__main__":
    main()
