"""Files in the format of safetensors, written and hashed piece by piece, and read once into memory.

The writer of safetensors itself would keep this process's other threads waiting, and its file would have to be read
again for its hash. A file is 8 bytes with the length of the header, the header in JSON, and the numbers of all tensors.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

PIECE = 1 << 20  # bytes that are written, or read, and hashed while they are in the cache
SYNCED = 1 << 26  # bytes that are written before the disk must have them
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 8


def write(path: Path, tensors: Mapping[str, Tensor], progressed: Callable[[], object]) -> str:
    """Write contiguous tensors [...] on the CPU; returns the SHA-256 of the file, hex.

    progressed: called after every piece. Other threads run meanwhile.
    """
    digest, unsynced = hashlib.sha256(), 0
    with open(path, "wb", buffering=0) as file:
        for piece in _pieces(tensors):
            rest = piece
            while rest:
                rest = rest[file.write(rest) :]
            digest.update(piece)
            unsynced += len(piece)
            if unsynced >= SYNCED:  # all at the end might take long, without a sign of progress
                os.fsync(file.fileno())
                unsynced = 0
            progressed()
    return digest.hexdigest()


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of the file."""
    header, end = {}, 0
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # so all are aligned
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        content = tensor.reshape(-1).view(torch.uint8).numpy().data
        yield from (content[start : start + PIECE] for start in range(0, len(content), PIECE))


def read(path: Path, progressed: Callable[[], object]) -> tuple[Tensor, str]:
    """The bytes of a file, uint8 [n], and their SHA-256, hex. progressed: called after every piece."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        data = torch.empty(os.fstat(file.fileno()).st_size, dtype=torch.uint8)
        view, done = data.numpy().data, 0
        while count := file.readinto(view[done : done + PIECE]):
            digest.update(view[done : done + count])
            done += count
            progressed()
    return data[:done], digest.hexdigest()


def parse(data: Tensor) -> dict[str, Tensor]:
    """The tensors [...] of a file whose bytes are data, uint8 [n]: parts of it, without a copy."""
    length = int.from_bytes(data[:8].numpy().tobytes(), "little")
    header = json.loads(data[8 : 8 + length].numpy().tobytes())
    numbers, tensors = data[8 + length :], {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors[name] = numbers[begin:end].view(DTYPES[entry["dtype"]]).view(entry["shape"])
    return tensors
