"""From shards to the page that compares runs, each command on what the one before it left."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from fss.config import CONFIGS
from launch import evaluate, meta_train, report, train_base
from tests.support.labelled import rectangles
from tests.support.launching import PLACE, called, refusal

TRAIN = [
    *PLACE,
    *"--data.workers 0 --data.batch 4 --method.size 33 --method.backbone resnet18".split(),
    *"--optim.steps 2 --validate.split none".split(),
]


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as weights:
        return weights.metadata()


@pytest.mark.usefixtures("no_pictures")
def test_a_base_learner_bam_and_the_prototype_end_in_one_table(capsys, tmp_path):
    """On 20 images of four classes, of which fold 1 of the interleaved scheme has green novel."""

    def done(main, *words: str) -> str:
        code, out, err = called(main, capsys, *words)
        assert code == 0, err
        return out

    data = ["--data.shards", str(rectangles(tmp_path / "rectangles", [1, 2, 3, 4] * 5).folder)]
    fold = ["--episodes.scheme", "interleaved", "--episodes.fold", "1"]
    base, bam = tmp_path / "base", tmp_path / "bam"
    recipes = [["--config", str(CONFIGS / path)] for path in ("base/small_cpu.yaml", "meta/bam_small_cpu.yaml")]
    done(train_base.main, *recipes[0], *TRAIN, *data, *fold, "--run.dir", str(base), "--validate.fraction", "0")
    learn = [*recipes[1], *TRAIN, *data, *fold, "--run.dir", str(bam), "--episodes.min_area", "50", "--method.dim", "8"]
    learn += ["--method.base_weights", str(base / "base.safetensors")]
    message = refusal(meta_train.main, capsys, *learn, "--episodes.fold", "0")
    assert "also red (1) and not green (2)" in message
    done(meta_train.main, *learn)
    found_header = header(bam / "bam.safetensors")
    assert json.loads(json.loads(found_header["base"])["classes"]) == {"1": "red", "3": "blue", "4": "yellow"}

    (base / "base.safetensors").unlink()  # BAM's export holds the base learner
    place = [*PLACE, "--data.workers", "0", *data, "--eval.episodes", "2", "--eval.min_area", "50"]
    seen = [*place, "--weights", str(bam / "bam.safetensors")]
    assert "have learned this fold's novel classes" in refusal(
        evaluate.main, capsys, *seen, "--run.dir", str(tmp_path / "other"), "--episodes.fold", "0"
    )
    results = {}
    prototype = ["--method", "prototype", "--method.backbone", "resnet18", "--method.size", "33"]
    for name, words in (("bam", seen), ("prototype", [*place, *prototype, *fold])):
        done(evaluate.main, *words, "--run.dir", str(tmp_path / f"evaluate_{name}"), "--run.report", "true")
        results[name] = json.loads((tmp_path / f"evaluate_{name}" / "results.json").read_text())
        assert list(results[name]["classes"]) == ["green"]

    out = done(report.main, *(str(tmp_path / f"evaluate_{name}") for name in results), "--out", str(tmp_path / "page"))
    assert str(tmp_path / "page" / "index.html") in out
    page = json.loads((tmp_path / "page" / "report.json").read_text())
    [table] = page["tables"]
    scored = {name: f"{100 * found['miou']['mean']:.2f}" for name, found in results.items()}
    assert {row[0]: row[2] for row in table["rows"]} == scored
