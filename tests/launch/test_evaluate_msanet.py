"""MSANet and BAM as users evaluate them: one rank and two count the same pixels, with memory and without."""

import pytest
import torch

from fss.methods.msanet.config import BAMConfig, MSANetConfig
from fss.methods.msanet.method import MSANet
from fss.nn.exports import save_export
from launch.evaluate import main
from tests.support.evaluating import SLOWLY, job, recorded, scores
from tests.support.labelled import rectangles
from tests.support.launching import called
from tests.support.made_msanet import build, save_base
from tests.support.ranks import on_ranks

EPISODES = 16
FOLD = ["--episodes.scheme", "interleaved", "--episodes.fold", "1", "--episodes.shots", "2", "--eval.min_area", "50"]


def decided(method: MSANet) -> MSANet:
    """With predictions that differ between positions and episodes, which those of random weights do not."""
    learner = method.trainable["learner"]
    with torch.no_grad():
        learner.decoder.classify[-1].weight.mul_(1000)
        learner.ensemble.suppress.copy_(torch.tensor([1, 0.1]))
    return method


@pytest.mark.parametrize("kind", [MSANetConfig, BAMConfig])
def test_one_rank_and_two_count_the_same(tmp_path, capsys, kind):
    save_base(tmp_path / "base.safetensors", "resnet18")
    config = kind(size=65, backbone="resnet18", dim=16, base_weights=str(tmp_path / "base.safetensors"))
    weights = tmp_path / "weights.safetensors"
    save_export(weights, *decided(build(config)).export())
    data = rectangles(tmp_path / "rectangles", [1, 2, 3, 4] * 5).folder
    method = [*FOLD, "--weights", str(weights)]
    one, two = tmp_path / "one", tmp_path / "two"
    words = ["--eval.episodes", str(EPISODES), "--run.threads", "1"]
    code, _, err = called(main, capsys, *job(data, one, method), *words)
    assert code == 0, err
    assert on_ranks(2, main, [*job(data, two, method), *words, *SLOWLY, "--run.world_size", "2"]) == [0, 0]
    assert len(list(two.glob("episodes/rank_*.jsonl"))) == 2
    assert recorded(one) == recorded(two) and scores(one) == scores(two)
    counts = recorded(one).values()
    assert len(counts) == EPISODES and len({str(found) for found in counts}) > EPISODES / 2
    assert all(union > hits for _, (hits, union) in counts) and any(hits for _, (hits, _) in counts)
