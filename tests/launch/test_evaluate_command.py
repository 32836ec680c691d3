"""The shipped evaluation: killed at any moment and started again on other ranks, it counts the same pixels."""

import json
import random
import signal
from pathlib import Path

import pytest

from fss.methods.qgnet.config import QGNetConfig
from fss.methods.qgnet.method import QGNet
from fss.nn.backbones import make_backbone
from fss.nn.exports import ExportHeader, save_export
from launch.evaluate import main
from shards.synthetic import synthetic
from shards.write import pack
from tests.support.evaluating import EPISODES, LAUNCHER, SLOWLY, job, recorded, scores, until
from tests.support.launching import Launched, refusal, run

QGNET = "--method qgnet --method.prior_map off".split()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """60 synthetic images, enough for every class of a fold."""
    folder = tmp_path_factory.mktemp("labelled") / "synthetic"
    pack(synthetic(60), folder, samples_per_shard=25)
    return folder


@pytest.fixture(scope="module")
def whole(labelled, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(job(labelled, folder)) == 0
    assert len(recorded(folder)) == EPISODES
    return folder


@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 3), pytest.param(1, 2, marks=pytest.mark.slow), pytest.param(3, 1, marks=pytest.mark.slow)],
)
def test_killed_and_gone_on_with_by_another_number_of_ranks(tmp_path, labelled, whole, before, after):
    folder = tmp_path / "run"
    started = Launched(before, *job(labelled, folder), *SLOWLY, launcher=LAUNCHER)
    until(started, folder, random.Random(before).randint(3, EPISODES // 2))
    started.kill()
    finished = recorded(folder)
    assert 0 < len(finished) < EPISODES
    run(after, *job(labelled, folder), launcher=LAUNCHER)
    assert recorded(folder) == recorded(whole)
    assert finished.items() <= recorded(folder).items()
    assert scores(folder) == scores(whole)


@pytest.mark.slow
def test_a_signal_ends_all_ranks_after_their_episode(tmp_path, labelled, whole):
    folder = tmp_path / "run"
    started = Launched(2, *job(labelled, folder), *SLOWLY, launcher=LAUNCHER)
    until(started, folder, 5)
    started.send(signal.SIGUSR1, to_ranks=True)
    code, output = started.wait()
    assert code != 0
    assert "episodes are recorded: run the same command again to continue" in output
    assert json.loads((folder / "status.json").read_text()) == {"status": "interrupted"}
    run(2, *job(labelled, folder), launcher=LAUNCHER)
    assert scores(folder) == scores(whole)


def refused(capsys, *argv: str) -> str:
    """The one sentence with which the launcher refuses `argv`."""
    assert main(list(argv)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_bad_input_is_refused_in_one_sentence(tmp_path, labelled, capsys):
    words = job(labelled, tmp_path)
    assert "give 0 to 3" in refused(capsys, *words, "--episodes.fold", "4")
    assert "needs the 20 classes of PASCAL VOC" in refused(capsys, *words, "--episodes.scheme", "pascal")
    assert "lower min_area or shots" in refused(capsys, *words, "--episodes.shots", "50")
    assert "min_area = 20000" in refused(capsys, *words, "--eval.min_area", "20000")
    assert "eval.size is 100: give a multiple of 8 plus 1" in refused(capsys, *words, "--eval.size", "100")
    assert "cannot be read" in refused(capsys, *words, "--weights", str(tmp_path / "none.safetensors"))
    assert "qgnet needs training" in refused(capsys, *job(labelled, tmp_path, QGNET))
    assert "run.world_size promises 2 ranks but 1 started" in refused(capsys, *words, "--run.world_size", "2")
    assert not list(tmp_path.iterdir())


def test_weights_hold_all_their_networks(labelled, tmp_path, capsys):
    backbone = tmp_path / "backbone.safetensors"
    save_export(backbone, make_backbone("resnet18").state_dict(), ExportHeader())
    config = QGNetConfig(size=33, backbone="resnet18", prior_map="off", dim=8, backbone_weights=str(backbone))
    weights = tmp_path / "qgnet.safetensors"
    save_export(weights, *QGNet(config).export())
    backbone.unlink()
    words = [*job(labelled, tmp_path / "run", ["--weights", str(weights)]), "--eval.episodes", "3"]
    assert main(words) == 0
    assert "leave it out" in refusal(main, capsys, *words, "--method.backbone_weights", "other.pth")
