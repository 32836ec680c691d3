"""Small packed sets for tests: any shard sizes, any damage."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
from webdataset import TarWriter

from shards.codec import encode_labels
from shards.format import Manifest, Meta, SampleEntry, ShardEntry

Members = dict[str, bytes]


def photo(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Make smooth coloured noise, uint8 [H, W, 3]."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def squares(height: int, width: int, side: int = 8) -> np.ndarray:
    """Make a regular label map at half resolution, uint8 [H / 2, W / 2]."""
    rows, columns = np.arange((height + 1) // 2) // side, np.arange((width + 1) // 2) // side
    return (rows[:, None] * (columns[-1] + 1) + columns).astype(np.uint8)


def write_set(
    folder: Path,
    counts: Sequence[int],
    change: Callable[[int, Members], Members | None] = lambda i, m: m,
    superpixels: Sequence[str] = ("slic",),
) -> Path:
    """Pack synthetic photos in shards of `counts` samples; `change` may damage the members of sample i."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(name="toy", classes={}, superpixels={name: {} for name in superpixels})
    for shard, samples in enumerate(counts):
        path = folder / f"toy-{shard:06d}.tar"
        with open(path, "wb") as file, TarWriter(file, encoder=False, mtime=0) as writer:
            for _ in range(samples):
                index = len(manifest.samples)
                height, width = 48 + 2 * (index % 3), 64
                members = {"jpg": jpeg(photo(index, height, width))}
                members |= {f"{name}.png": encode_labels(squares(height, width)) for name in superpixels}
                members["json"] = Meta(source=f"{index}.jpg", height=height, width=width).encode()
                offset = writer.tarstream.offset
                writer.write({"__key__": f"s{index:04d}", **change(index, members)})
                manifest.samples.append(
                    SampleEntry(
                        key=f"s{index:04d}",
                        shard=shard,
                        offset=offset,
                        length=writer.tarstream.offset - offset,
                        height=height,
                        width=width,
                        classes={},
                    )
                )
        data = path.read_bytes()
        manifest.shards.append(
            ShardEntry(name=path.name, samples=samples, bytes=len(data), sha256=sha256(data).hexdigest())
        )
    manifest.save(folder)
    return folder
