"""Weighted k-nearest-neighbour classification, which measures features without training anything on them."""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    classes: int,
    chunk: int = 256,
) -> Tensor:
    """Predict the class of each row of `features` by the votes of its `k` nearest training rows.

    Nearness is the cosine s in float32; a neighbour votes for its class with weight exp(s / temperature), as in
    instance discrimination (Wu et al. 2018, section 3.4; k = 200 and 0.07 there). If there are fewer than `k` training
    rows, all of them vote.

    Args:
        train_features: [M, D], any scale.
        train_labels: [M] int64 in [0, classes).
        features: [N, D], any scale.
        classes: number of classes C.
        chunk: rows of `features` taken at once; they need chunk * (M + k * C) numbers of memory.

    Returns:
        [N] int64 class ids.
    """
    bank_MD = F.normalize(train_features.float(), dim=1)
    k = min(k, len(bank_MD))
    predictions = [torch.empty(0, dtype=torch.int64, device=features.device)]
    for rows in features.split(chunk):
        similarity, nearest = (F.normalize(rows.float(), dim=1) @ bank_MD.T).topk(k, dim=1)  # [n, k] both
        votes = (similarity / temperature).softmax(dim=1)  # [n, k]; exp(s / T) up to a factor a row, never overflows
        # A sum over one-hot rows and not scatter_add: that one adds in random order on CUDA, and ties would flip.
        ballots = F.one_hot(train_labels[nearest], classes).mul(votes[..., None]).sum(dim=1)  # [n, k, C] -> [n, C]
        predictions.append(ballots.argmax(dim=1))
    return torch.cat(predictions)
