"""The mean positive cosine against loops over pixels, however the work is cut."""

import pytest
import torch
from torch.nn import functional as F

from fss.nn import similarity
from fss.nn.similarity import averages, relu_cosine_mean


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(params=[1, 40, 1 << 20], ids="{} products".format)
def cut(request, monkeypatch):
    """The number of products held at a time: one row, some rows, all."""
    monkeypatch.setattr(similarity, "PRODUCTS", request.param)


def test_every_shot_is_averaged_over_its_own_pixels(cut):
    query, columns = vectors(2, 7, 5), vectors(2, 6, 5, seed=1)  # 2 layers of 7 positions and 6 pixels
    found = relu_cosine_mean(query.mT, columns, averages([4, 0, 2]))
    assert found.shape == (2, 3, 7)
    for layer in range(2):
        for shot, mine in enumerate([range(4), [], range(4, 6)]):
            for position in range(7):
                cosines = [float(query[layer, position] @ columns[layer, i]) for i in mine]
                expected = sum(max(0, c) for c in cosines) / len(cosines) if cosines else 0
                assert found[layer, shot, position].item() == pytest.approx(expected, abs=1e-6)


def test_without_a_pixel_there_is_no_similarity():
    assert relu_cosine_mean(vectors(7, 5).mT, vectors(0, 5), averages([0, 0])).equal(torch.zeros(2, 7))


def test_averages_of_averages_give_the_mean_over_shots(cut):
    query, columns, weights = vectors(7, 5).mT, vectors(6, 5), averages([4, 2])
    both = relu_cosine_mean(query, columns, weights)
    torch.testing.assert_close(relu_cosine_mean(query, columns, weights.mean(0, keepdim=True))[0], both.mean(0))


def test_lengths_of_the_query_may_be_divided_out_later():
    query, columns, weights = torch.randn(7, 5), vectors(6, 5), averages([6])
    later = relu_cosine_mean(query.mT, columns, weights) / query.norm(dim=1)
    torch.testing.assert_close(later, relu_cosine_mean(F.normalize(query, dim=1).mT, columns, weights))


def test_autocast_does_not_touch_the_cosines():
    query, columns, weights = vectors(7, 5).mT, vectors(6, 5), averages([6])
    with torch.autocast("cpu", torch.bfloat16):
        found = relu_cosine_mean(query, columns, weights)
    assert found.equal(relu_cosine_mean(query, columns, weights))
    assert relu_cosine_mean(query.bfloat16(), columns.bfloat16(), weights).dtype == torch.float32
