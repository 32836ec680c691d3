"""Small made-up episodes, and a method's evaluation of a batch of them."""

import torch

from fss.data.batch import EpisodeBatch
from fss.methods.base import EpisodeMethod, Features

SIZE = 65  # 9 x 9 positions


def episodes(b: int = 2, k: int = 1, seed: int = 0) -> EpisodeBatch:
    """Noise with rectangles for objects; some pixels are unknown."""
    g = torch.Generator().manual_seed(seed)
    masks = torch.zeros(b, 1 + k, SIZE, SIZE, dtype=torch.uint8)
    for row in masks.flatten(0, 1):
        top, left = torch.randint(0, SIZE // 2, (2,), generator=g).tolist()
        row[top : top + 30, left : left + 24] = 1
        row[:, -3:] = 255
    images = torch.randint(0, 256, (b, 1 + k, 3, SIZE, SIZE), dtype=torch.uint8, generator=g)
    return EpisodeBatch(
        query=images[:, 0],
        query_mask=masks[:, 0],
        support=images[:, 1:],
        support_mask=masks[:, 1:],
        class_id=torch.ones(b, dtype=torch.int64),
        keys=[str(i) for i in range(b)],
        replaced=[],
    )


def seen(method: EpisodeMethod, batch: EpisodeBatch, row: int = 0) -> tuple[Features, list[Features]]:
    """The query's features and the descriptions of the supports of one episode."""
    normalize = method.non_trainable["normalize"]
    described = [
        method.encode_support(method.encode(normalize(image[None])), mask[None])
        for image, mask in zip(batch.support[row], batch.support_mask[row], strict=True)
    ]
    return method.encode(normalize(batch.query[row : row + 1])), described


def image_by_image(method: EpisodeMethod, batch: EpisodeBatch) -> torch.Tensor:
    """The logits of an evaluation, [B, 2, S, S]."""
    return torch.cat([method.predict(*seen(method, batch, row)).logits for row in range(len(batch))])
