"""Digests that ranks compare: they see every byte and its place, on any device, with one wait of the host."""

import os

import pytest
import torch

from fss.distributed.tensor_digest import CHUNK, device_digests, fingerprint, multipliers
from tests.support.ranks import on_ranks

INTEGERS = (torch.uint8, torch.int16, torch.int64)
DTYPES = (*INTEGERS, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (2, 3, 5, 4), (CHUNK,), (CHUNK + 1,), (3, CHUNK)]


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return made > 0 if dtype == torch.bool else (made * 100).to(dtype)


def digest(x: torch.Tensor) -> str:
    return device_digests([x])[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_bytes_have_equal_digests_alone_and_among_others(shape, dtype):
    x = drawn(shape, dtype)
    others = [torch.ones(3), x.clone(), torch.zeros(0), torch.tensor(5)]
    assert device_digests(others)[1] == digest(x)
    assert (digest(x) == digest(torch.zeros_like(x))) == (x.numel() == 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("place", [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 4])
def test_a_flip_of_any_bit_is_seen(dtype, place):
    x = drawn((2 * CHUNK + 5,), dtype)
    bits = x.element_size() * 8 if dtype != torch.bool else 1
    for bit in range(bits):
        flipped = x.clone()
        flipped.view(torch.uint8)[place * x.element_size() + bit // 8] ^= 1 << bit % 8
        assert digest(flipped) != digest(x), bit


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("places", [(0, 1), (3, CHUNK - 1), (0, CHUNK), (5, CHUNK + 5), (CHUNK, CHUNK + 1)])
def test_a_swap_of_two_values_is_seen(dtype, places):
    x = torch.zeros(CHUNK + 8).to(dtype)
    x[places[0]] = 1
    swapped = x.clone()
    swapped[list(places)] = x[list(reversed(places))]
    assert digest(swapped) != digest(x)


@pytest.mark.parametrize(("one", "other"), [(0, -(2**63)), (2**32, 0), (1, -1)])
def test_a_swap_of_numbers_that_differ_in_high_bits_alone_is_seen(one, other):
    assert digest(torch.tensor([one, other])) != digest(torch.tensor([other, one]))


def test_every_swap_in_a_chunk_is_seen():
    """See `multipliers`: of two positions, the low 33 bits differ in one table at least, and all are odd."""
    table = multipliers(torch.device("cpu"))
    assert (table & 1).all()
    low = table & (2**33 - 1)
    assert len(torch.unique(low, dim=1).T) == CHUNK


def test_signs_and_moved_values_are_seen():
    x = drawn((4, 64), torch.float32)
    assert len({digest(y) for y in (x, -x, x.flip(0), x.flip(1), x.roll(1), x.T, x.abs())}) == 7
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0])), "bytes, not values"
    assert digest(torch.tensor([float("nan")])) == digest(torch.tensor([float("nan")]))


@pytest.mark.parametrize("of", [digest, fingerprint])
def test_values_are_seen_and_not_the_memory_format(of):
    x = torch.randn(2, 3, 4, 4)
    assert of(x) == of(x.to(memory_format=torch.channels_last)) == of(torch.cat([x, x])[2:])
    assert of(x) != of(x + 1e-6)
    rows = torch.arange(10, dtype=torch.bfloat16)
    assert of(rows[1:]) == of(rows[1:].clone()), "a part that is not aligned to a word"


def test_a_device_is_waited_for_once(counted):
    from tests.support.counted_device import DEVICE  # not in the ranks below, which import this file

    tensors = [drawn(shape, dtype) for shape in SHAPES for dtype in DTYPES]
    with counted() as count:
        found = device_digests([x.to(DEVICE, non_blocking=True) for x in tensors])
    assert count.waits.total() == 1, count.waits
    assert found == device_digests(tensors)


def _on_a_rank() -> list[str]:
    torch.manual_seed(int(os.environ.get("RANK", 7)))
    return device_digests([drawn((3, CHUNK), torch.float32), torch.empty(0)])


def test_processes_draw_the_same_multipliers():
    assert on_ranks(2, _on_a_rank) == [_on_a_rank()] * 2
