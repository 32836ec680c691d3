"""The recall of region maps as a command: what it prints and leaves, and what it refuses."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from fss.methods.qgnet.config import QGNetConfig
from fss.methods.qgnet.method import QGNet
from fss.nn.exports import save_export
from launch.recall import main
from shards.format import Manifest


def episodes(packed: Path) -> list[str]:
    """Options for four episodes of the set's two most frequent classes."""
    manifest = Manifest.load(packed)
    counts = Counter(class_id for sample in manifest.samples for class_id in sample.classes)
    novel = json.dumps([manifest.classes[class_id] for class_id, _ in counts.most_common(2)])
    return [
        "--data.shards",
        str(packed),
        "--episodes.scheme",
        "list",
        "--episodes.novel",
        novel,
        *"--eval.episodes 4 --eval.seeds [0] --run.device cpu --data.workers 0".split(),
    ]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "qgnet.safetensors"
    save_export(path, *QGNet(QGNetConfig(size=65, backbone="resnet18", prior_map="off", dim=8)).export())
    return path


def test_the_table_is_printed_and_written(tmp_path, packed, weights, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "out"
    assert main(["--weights", str(weights), "--out", str(out), *episodes(packed)]) == 0
    printed = capsys.readouterr().out
    assert str(out / "recall.md") in printed
    assert all(figure in printed for figure in ("85.6", "65.6", "2.2")), "the paper's row gives way to a narrow screen"
    assert {path.name for path in out.iterdir()} == {"recall.json", "recall.md", "recall.png"}
    record = json.loads((out / "recall.json").read_text())
    assert record["recall"]["episodes"] == 4 and record["weights"] == str(weights)
    assert set(record["recall"]["of_episodes"]) == {"guided region map", "1 - guided region map"}
    assert "random weights" in record["caveat 1"] and "fold" in record


def test_a_method_without_maps_is_one_sentence(tmp_path, packed, capsys):
    words = ["--method", "prototype", "--method.backbone", "resnet18", "--method.size", "65"]
    assert main([*words, "--out", str(tmp_path / "out"), *episodes(packed)]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: Prototype has no maps as it is configured") and not (tmp_path / "out").exists()
