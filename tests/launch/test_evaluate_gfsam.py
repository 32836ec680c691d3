"""GF-SAM as users start it: killed and gone on with by other ranks, it counts the same; one sentence on errors."""

import json

import pytest
import torch

from launch.evaluate import main
from shards.synthetic import synthetic
from shards.write import pack
from tests.support.evaluating import LAUNCHER, SLOWLY, job, recorded, scores, until
from tests.support.launching import Launched, refusal, run

EPISODES = 8
METHOD = [
    *"--method gfsam --method.sam vit_t --method.size 128 --method.dino vits14".split(),
    *"--method.dino_size 70".split(),
]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Folder of the run -> the words of a job over 40 synthetic images."""
    folder = tmp_path_factory.mktemp("labelled") / "synthetic"
    pack(synthetic(40), folder, samples_per_shard=25)
    return lambda run, *more: [
        *job(folder, run, METHOD),
        "--eval.protocol",
        "gfsam",
        "--eval.episodes",
        str(EPISODES),
        *"--eval.min_area 0 --eval.resolution 128".split(),
        *more,
    ]


@pytest.mark.slow
def test_killed_on_two_ranks_and_gone_on_with_by_two(tmp_path, words):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert main(words(whole)) == 0
    started = Launched(2, *words(folder), *SLOWLY, launcher=LAUNCHER)
    until(started, folder, 2)
    started.kill()
    finished = recorded(folder)
    assert 0 < len(finished) < EPISODES
    run(2, *words(folder), launcher=LAUNCHER)
    assert recorded(folder) == recorded(whole) and finished.items() <= recorded(folder).items()
    assert scores(folder) == scores(whole)
    flags = [json.loads((run / "results.json").read_text())["flags"] for run in (folder, whole)]
    assert flags[0] == flags[1]


def test_bad_input_is_refused_in_one_sentence(tmp_path, words, capsys):
    folder = tmp_path / "run"
    file = tmp_path / "sam_vit_b.pth"
    tell_tale = {
        "image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16),
        "mask_decoder.iou_token.weight": torch.zeros(1, 256),
    }
    torch.save(tell_tale, file)
    message = refusal(main, capsys, *words(folder, "--method.sam_weights", str(file)))
    assert "sam_vit_b.pth holds the weights of SAM vit_b but method.sam is vit_t: set method.sam to vit_b" in message
    message = refusal(main, capsys, *words(folder, "--method.dino_weights", str(file)))
    assert "holds no DINOv2" in message
    assert "give a multiple of 16" in refusal(main, capsys, *words(folder, "--method.size", "100"))
    assert "eval.size is 100: give a multiple of 16" in refusal(main, capsys, *words(folder, "--eval.size", "100"))
    assert not folder.exists()
