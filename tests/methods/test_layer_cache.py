"""What an evaluation keeps of layers compares like the layers themselves, in training."""

import pytest
import torch

from fss.methods.msanet import layer_cache
from fss.methods.support_vectors import SupportVectors, select_objects
from fss.nn.multisim import layer_similarity


@pytest.mark.parametrize("squeeze", ["mask", "feature"])
def test_kept_layers_compare_as_the_layers_do(squeeze):
    """The vectors' lengths differ a lot: those that are kept have lost theirs, which decides Eq. 4."""
    g = torch.Generator().manual_seed(0)
    layer = torch.randn(3, 24, 9, 9, generator=g) * torch.rand(3, 1, 9, 9, generator=g).add(0.05) * 50
    share = torch.rand(2, 1, 9, 9, generator=g)
    share[share < 0.4] = 0
    share[1] *= 1e-3  # an object smaller than a pixel
    query = layer_cache.image_layers(3, [layer[:1]], squeeze)

    def described(support: torch.Tensor, share: torch.Tensor) -> dict[str, torch.Tensor]:
        features = layer_cache.image_layers(3, [support], squeeze)
        masks = layer_cache.object_masks(features, share, squeeze)
        return select_objects([SupportVectors({}, features, masks)])[0]

    shots = [described(x, s) for x, s in zip(layer[1:].split(1), share.split(1), strict=True)]
    found = layer_cache.similarity_maps(query, shots, (9, 9), lambda block: 0)
    torch.testing.assert_close(found, layer_similarity(layer, share, squeeze), rtol=1e-3, atol=2e-4)
    last = layer_cache.similarity_maps(query, shots, (9, 9), lambda block: int(block == 3))
    alone = layer_similarity(torch.stack([layer[0], layer[2]]), share[1:], squeeze)
    torch.testing.assert_close(last, alone, rtol=1e-3, atol=2e-4)


def test_layers_keep_the_order_of_the_network():
    layers = [torch.randn(1, 4, 3, 3) for _ in range(12)]
    features = layer_cache.image_layers(2, layers[:1], "feature") | layer_cache.image_layers(3, layers[1:], "feature")
    assert layer_cache.layer_names(features) == ["layer 2.0", *(f"layer 3.{i}" for i in range(11))]
    assert [layer_cache.block_number(name) for name in layer_cache.layer_names(features)] == [2] + 11 * [3]
