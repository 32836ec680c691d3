"""BAM's ensemble against loops over channels, classes and shots."""

import math

import pytest
import torch

from fss.errors import ConfigError
from fss.nn.ensemble import (
    Ensemble,
    LearnedShotWeights,
    ShotWeights,
    base_map,
    cosine_gram,
    log_scores,
    psi,
)


def test_psi_is_the_root_mean_square_difference_of_channel_cosines():
    torch.manual_seed(0)
    a, b = torch.rand(1, 4, 3, 3), torch.rand(1, 4, 3, 3)

    def cosine(x, i, j):
        p, q = x[0, i].flatten().tolist(), x[0, j].flatten().tolist()
        return sum(u * v for u, v in zip(p, q, strict=True)) / math.sqrt(sum(u * u for u in p) * sum(v * v for v in q))

    pairs = [(i, j) for i in range(4) for j in range(4)]
    grams = cosine_gram(a), cosine_gram(b)
    for i, j in pairs:
        assert grams[0][0, i, j].item() == pytest.approx(cosine(a, i, j), abs=1e-5)
    expected = math.sqrt(sum((cosine(a, i, j) - cosine(b, i, j)) ** 2 for i, j in pairs) / 16)
    assert psi(*grams).item() == pytest.approx(expected, rel=1e-4)
    assert psi(grams[0], grams[0]).item() == 0


def test_a_channel_that_never_responds_gives_no_nan():
    features = torch.rand(1, 3, 2, 2)
    features[:, 1] = 0
    assert cosine_gram(features).isfinite().all()


def test_the_base_map_sums_the_classes_that_count():
    logits = torch.randn(2, 4, 1, 1)
    shares = [[math.exp(v) for v in row] for row in logits[:, :, 0, 0].tolist()]
    everything = [sum(row[1:]) / sum(row) for row in shares]
    assert base_map(logits).flatten().tolist() == pytest.approx(everything, rel=1e-5)
    excluded = torch.tensor([[True, False, False], [False, False, True]])
    expected = [(shares[0][2] + shares[0][3]) / sum(shares[0]), (shares[1][1] + shares[1][2]) / sum(shares[1])]
    assert base_map(logits, excluded).flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_the_ensemble_adjusts_both_sides_alike_and_adds_the_base_map_to_the_background():
    ensemble = Ensemble()
    meta, unlike, base = torch.randn(1, 2, 1, 1), torch.tensor([0.3]), torch.tensor(0.6).view(1, 1, 1, 1)
    background, thing = meta.softmax(1).flatten().tolist()
    assert ensemble(meta, unlike, base).flatten().tolist() == pytest.approx([background, thing]), "as it begins"
    with torch.no_grad():
        ensemble.adjust.copy_(torch.tensor([0.9, 0.15]))
        ensemble.suppress.copy_(torch.tensor([0.8, 0.35]))
    adjusted = [0.9 * side + 0.15 * 0.3 for side in (background, thing)]
    expected = [0.8 * adjusted[0] + 0.35 * 0.6, adjusted[1]]
    assert ensemble(meta, unlike, base).flatten().tolist() == pytest.approx(expected)


def test_log_scores_are_shares():
    scores = torch.tensor([0.6, 0.2]).view(1, 2, 1, 1)
    assert log_scores(scores).softmax(1).flatten().tolist() == pytest.approx([0.75, 0.25])
    assert log_scores(-scores).isfinite().all()


def test_learned_weights_belong_to_their_shots_or_to_the_order():
    torch.manual_seed(0)
    ours, sorted_weights = LearnedShotWeights(3, sorted_weights=False), LearnedShotWeights(3, sorted_weights=True)
    sorted_weights.load_state_dict(ours.state_dict())
    unlike = torch.tensor([[0.5, 0.1, 0.3]])
    by_rank = ours.layers(torch.tensor([[0.1, 0.3, 0.5]])).softmax(1)[0].tolist()
    assert sorted_weights(unlike)[0].tolist() == pytest.approx(by_rank)
    assert ours(unlike)[0].tolist() == pytest.approx([by_rank[2], by_rank[0], by_rank[1]])
    with pytest.raises(ConfigError, match=r"an episode has 2 shot\(s\)"):
        ours(unlike[:, :2])


def test_weights_from_psi_alone_take_any_number_of_shots():
    unlike = torch.tensor([[0.1, 0.2]])
    first = 1 / (1 + math.exp(-0.1 / 0.05))
    assert ShotWeights(0.05)(unlike)[0].tolist() == pytest.approx([first, 1 - first])
    assert ShotWeights(math.inf)(unlike)[0].tolist() == [0.5, 0.5]
    assert ShotWeights(0.05)(unlike[:, :1]).item() == 1
