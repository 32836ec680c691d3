"""The prototype baseline against loops over positions, and that it is no method to train."""

import math

import pytest
import torch
from torch.nn import functional as F

from fss.errors import ConfigError
from fss.methods.base import StepContext
from fss.methods.prototype import Prototype, PrototypeConfig

SIZE = 65  # 9 x 9 positions


def build(**options) -> Prototype:
    torch.manual_seed(0)
    return Prototype(PrototypeConfig(size=SIZE, backbone="resnet18", **options))


def image(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def mask(top: int = 16, unknown: int = 0) -> torch.Tensor:
    """An object of 24 rows; the last `unknown` columns are unknown."""
    found = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    found[:, top : top + 24, 8:40] = 1
    found[:, :, SIZE - unknown :] = 255
    return found


def average(features: torch.Tensor, weights: torch.Tensor) -> list[float]:
    """[C, h, w], [h, w] -> the weighted mean over positions."""
    c, h, w = features.shape
    cells = [(i, j, weights[i, j].item()) for i in range(h) for j in range(w)]
    area = sum(weight for *_, weight in cells) + 0.0005
    return [sum(features[k, i, j].item() * weight for i, j, weight in cells) / area for k in range(c)]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


@pytest.mark.parametrize("features", ["block3", "block2+3", "block4"])
def test_logits_are_scaled_cosines_to_the_mean_of_the_shots_prototypes(features):
    method = build(features=features, scale=7.0)
    supports = [(method.encode(image(1)), mask(unknown=9)), (method.encode(image(2)), mask(top=30))]
    query = method.encode(image())
    found = method.predict(query, [method.encode_support(f, m) for f, m in supports]).logits

    prototypes = []
    for value in (0, 1):
        shots = []
        for f, m in supports:
            small = F.interpolate((m == value).float()[None], 9, mode="bilinear", align_corners=True)[0, 0]
            shots.append(average(f["features"][0], small))
        prototypes.append([sum(pair) / 2 for pair in zip(*shots, strict=True)])
    pixels = query["features"][0]
    small = torch.tensor(
        [[[7 * cosine(pixels[:, i, j].tolist(), p) for j in range(9)] for i in range(9)] for p in prototypes]
    )
    expected = F.interpolate(small[None], SIZE, mode="bilinear", align_corners=True)
    assert found.shape == (1, 2, SIZE, SIZE)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_chosen_features_are_compared():
    method = build()
    blocks = method.non_trainable["backbone"].blocks(image())
    chosen = {name: build(features=name).encode(image())["features"] for name in ("block3", "block2+3", "block4")}
    assert torch.equal(chosen["block3"], blocks.block3)
    assert torch.equal(chosen["block4"], blocks.block4)
    assert torch.equal(chosen["block2+3"], torch.cat([blocks.block3, blocks.block2], 1))


def test_it_finds_an_object_of_another_colour():
    method = build()
    painted, found = 0.1 * torch.randn(1, 3, 193, 193), torch.zeros(1, 193, 193, dtype=torch.uint8)
    found[:, 40:140, 60:170] = 1
    painted[:, 0][found == 1] += 4
    features = method.encode(painted)
    prediction = method.predict(features, [method.encode_support(features, found)]).logits.argmax(1)
    truth = found == 1
    assert ((prediction == 1) & truth).sum() / ((prediction == 1) | truth).sum() > 0.5


def test_a_support_without_an_object_gives_finite_logits():
    method = build()
    features = method.encode(image())
    seen = method.encode_support(features, torch.zeros(1, SIZE, SIZE, dtype=torch.uint8))
    assert method.predict(features, [seen]).logits[:, 1].eq(0).all()


def test_it_cannot_be_trained_and_says_where_to_go():
    method = build()
    assert not method.requires_training and not list(method.trainable.parameters())
    assert not any(p.requires_grad for p in method.non_trainable.parameters())
    with pytest.raises(TypeError, match="nothing to train: evaluate it"):
        method.loss(None, StepContext())
    assert "random weights" in method.caveats(0)[0]


@pytest.mark.parametrize("change", [{"size": 100}, {"scale": 0.0}], ids=str)
def test_options_that_make_no_sense_are_refused(change):
    with pytest.raises(ConfigError, match=rf"method\.{next(iter(change))} is"):
        PrototypeConfig(**change)
