"""Digests of tensors: of their bytes, or, for a comparison between ranks, computed where the tensors are."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from fss.nn.transfer import device_table, to_device

CHUNK = 1 << 16  # words of a sum: products and multipliers of so many stay in a CPU's cache


def fingerprint(tensor: Tensor) -> str:
    """Digest of the bytes of a tensor of any shape, independent of its memory format; recorded in files."""
    flat = tensor.detach().contiguous().reshape(-1).cpu()
    return hashlib.blake2b(flat.view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()


def device_digests(tensors: Iterable[Tensor]) -> list[str]:
    """Digest of the bytes of each tensor [...], of any dtype, independent of its memory format; never recorded.

    The tensors are on one device, which computes two sums for each `CHUNK` words of a tensor: each word times a
    multiplier of its position, modulo 2**64. One copy takes all sums to the host, which waits for it. Integers add up
    to the same value in any order, so equal bytes have equal digests on all ranks. A change of one word is always
    seen, so is a swap of two words of a chunk; any other change is missed with a probability of about 2**-64. (torch's
    own `hash_tensor` is an exclusive or: it sees no order.)
    """
    sums: list[Tensor] = []  # int64 [2] of every chunk
    chunks: list[int] = []
    for tensor in tensors:
        words = _words(tensor)
        parts = words.split(CHUNK) if len(words) else ()
        sums += [(part * multipliers(part.device)[:, : len(part)]).sum(1) for part in parts]
        chunks.append(len(parts))
    rows = torch.stack(sums).cpu() if sums else torch.empty(0, 2, dtype=torch.int64)
    return [hashlib.blake2b(part.numpy().tobytes(), digest_size=16).hexdigest() for part in rows.split(chunks)]


def _words(tensor: Tensor) -> Tensor:
    """The bytes of a tensor [...] as integers [n] of at most 32 bits."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view({1: torch.uint8, 2: torch.int16}.get(flat.element_size(), torch.int32))


@device_table
def multipliers(device: torch.device) -> Tensor:
    """Odd integers, int64 [2, CHUNK]: no two positions have the low 33 bits of both in common.

    Two words differ by less than 2**32. So their swap, which adds the product of their difference and that of their
    multipliers, changes at least one of the sums modulo 2**64.
    """
    drawn = torch.randint(-(2**63), 2**63 - 1, (2, CHUNK), generator=torch.Generator().manual_seed(0))
    return to_device(drawn | 1, device)
