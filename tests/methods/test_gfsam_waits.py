"""How often the host waits for the device in an evaluated episode of GF-SAM, and that the device changes no result."""

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor

from fss.data.transforms import Frame
from fss.evaluate.metrics import counts
from fss.evaluate.predictor import EpisodePredictor
from fss.methods.gfsam import FALLBACK, GFSAM, NO_POINT, GFSAMConfig
from fss.nn.mask_logits import CHUNK, every_cell, mixed_cells
from fss.nn.sam import Sam
from fss.nn.transfer import to_device, to_host
from tests.support.tiny_gfsam import SIZE, tiny

MOST = 6
FRAME = Frame.fit(70, 90, SIZE, "squash")


def square(pixels: slice) -> Tensor:
    """A blue ground with a red square, [1, 3, S, S]."""
    image = torch.zeros(1, 3, SIZE, SIZE)
    image[:, 2] = torch.linspace(0.8, 1, SIZE)
    image[:, :, pixels, pixels] = torch.tensor([1.0, 0.1, 0]).view(3, 1, 1)
    return image


def mask_of(value: int) -> Tensor:
    """A mask uint8 [H, W] of the image that `FRAME` is of: `value` in the middle."""
    mask = torch.zeros(FRAME.height, FRAME.width, dtype=torch.uint8)
    mask[17:53, 22:68] = value
    return mask


def episode(method: GFSAM, device: torch.device, query: Tensor, mask: Tensor, shots: int) -> tuple:
    """One episode from images in host memory to what an evaluation counts: the mask, the counts and the flags."""
    predictor = EpisodePredictor(method, device=device)
    with predictor:
        support = predictor.encode(to_device(square(slice(16, 48)), device))
        supports = predictor.encode_supports([(support, mask.numpy(), FRAME)] * shots)
        image = to_device(query, device)
        features = predictor.encode_query(image, predictor.encode(image))
        found = predictor.segment(features, supports, "the query", FRAME, "original")
    return found.mask.tolist(), counts(found.mask, mask.numpy()).tolist(), found.flags


def compare(counted, method: GFSAM, query: Tensor, mask: Tensor, shots: int = 1) -> tuple:
    """Assert that the episode waits no more than it may and ends as on the CPU; returns its result."""
    expected = episode(method, torch.device("cpu"), query, mask, shots)
    from tests.support.counted_device import DEVICE

    with counted():
        method.non_trainable.to(DEVICE)
    with counted() as count:
        found = episode(method, DEVICE, query, mask, shots)
    assert count.waits.total() <= MOST, count.waits
    assert found == expected
    return found


@pytest.mark.parametrize("features", ["dino", "sam"])
def test_an_episode_of_real_networks(counted, features):
    torch.manual_seed(0)
    method = GFSAM(GFSAMConfig(sam="vit_t", size=SIZE, dino="vits14", dino_size=56, features=features))
    compare(counted, method, square(slice(8, 40)), mask_of(1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reading": "paper", "one_point": True},
        {"gate": "none", "consistency": "none"},
        {"gate": "union", "pivot": "aligned", "presence": True},
        {"clusters": "kmeans", "consistency": "points", "overlap": "exact"},
        {"consistency": "prototype", "selection": "all"},
    ],
)
def test_an_episode_under_other_rules(counted, options):
    flat, (_, foreground), _ = compare(counted, tiny(**options), square(slice(8, 40)), mask_of(1))
    assert any(map(any, flat)) and foreground[0] > 0


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("reading", ["reference", "paper"])
def test_supports_without_a_pixel_of_the_class(counted, value, reading):
    compare(counted, tiny(reading=reading), square(slice(8, 40)), mask_of(value), shots=2)


def test_five_supports_are_described_by_one_copy(counted):
    compare(counted, tiny(), square(slice(8, 40)), mask_of(1), shots=5)


def test_a_support_that_is_all_object(counted):
    compare(counted, tiny(), square(slice(8, 40)), torch.ones_like(mask_of(1)))


def test_a_query_without_a_point(counted):
    assert compare(counted, tiny(), torch.ones(1, 3, SIZE, SIZE), mask_of(1))[2] == (NO_POINT,)


@pytest.mark.parametrize("gate", ["growth", "none"])
def test_an_episode_in_which_no_mask_has_a_pixel(counted, monkeypatch, gate):
    """The masks are merged, found empty, and one is taken alone."""
    method = tiny(gate=gate)
    sam = method.non_trainable["sam"]
    masks = sam.masks
    monkeypatch.setattr(sam, "masks", lambda embedding, points: -masks(embedding, points).abs() - 1)
    assert compare(counted, method, square(slice(8, 40)), mask_of(1))[2] == (FALLBACK,)


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 7])
def test_interpolating_every_cell_gives_the_same_union(ratio):
    """Also of logits that are tied, tiny, infinite or no number."""
    noise = torch.randn(CHUNK + 4, 16, 16, generator=torch.Generator().manual_seed(ratio))
    fraction = (torch.arange(ratio) + ratio // 2 + 0.5) / ratio % 1
    special = (noise.where(noise < 2, x) for x in (torch.inf, torch.nan))
    for logits in (noise, noise - 1.5, noise.sign(), noise.clamp(min=0), noise * 1e-44, noise.bfloat16(), *special):
        for count in (0, 1, len(noise)):
            parts = torch.arange(count).split(CHUNK) if count else ()
            union = mixed_cells(logits, parts, fraction)
            assert every_cell(logits, parts, fraction).equal(union) and union.any() == (count > 0)


def test_sams_encoder_makes_its_tables_on_the_device(counted):
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=64, depth=2, embed_dim=32, num_heads=2, window_size=3, global_attn_indexes=(1,), use_rel_pos=True
    )
    for block in encoder.blocks:
        torch.nn.init.normal_(block.attn.rel_pos_h)
    sam, image = Sam("vit_t"), torch.randn(1, 3, 64, 64)
    sam.image_encoder = encoder
    expected = encoder(image).detach()
    from tests.support.counted_device import DEVICE

    with counted():
        sam.to(DEVICE)
        on_device = image.to(DEVICE)
    with counted() as count:
        found = sam.encode(on_device)
    assert not count.waits and found.detach().cpu().equal(expected)


def test_tensors_are_copied_to_the_host_at_once(counted):
    from tests.support.counted_device import DEVICE

    given = (torch.rand(2, 3), torch.tensor(4.0), torch.zeros(0, 5))
    with counted() as count:
        there = [to_device(x, DEVICE) for x in given]
        assert not count.waits
        back = to_host(*there)
        assert count.waits.total() == 1
    assert all(a.equal(b) and a.shape == b.shape for a, b in zip(given, back, strict=True))
    assert to_host(*given) == given and to_device(given[0], torch.device("cpu")) is given[0]
