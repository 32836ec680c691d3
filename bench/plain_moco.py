"""MoCo v2 as its authors' code goes about it, on one process: what the shipped step is measured against.

NCHW float32, a new tensor for every parameter of the momentum update, the queue stored in columns and cloned, logits
concatenated for cross-entropy. Nothing is done twice or in a roundabout way; every operation is torch's own.
"""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlainMoCo(nn.Module):
    """Query and momentum encoder and one queue. `stage` is called with a stage's name and times what runs inside."""

    def __init__(
        self, encoder: nn.Module, *, dim: int, queue: int, momentum: float, temperature: float, stage=nullcontext
    ):
        super().__init__()
        self.momentum = momentum
        self.temperature = temperature
        self.stage: type[AbstractContextManager] = stage
        self.encoder_q = encoder
        self.encoder_k = copy.deepcopy(encoder).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue), dim=0))  # [D, K]
        self.pointer = 0

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """The mean InfoNCE of float views [B, 3, H, W] each; writes the keys to the queue."""
        with self.stage("q forward"):
            q = F.normalize(self.encoder_q(query), dim=1)  # [B, D]
        with torch.no_grad():
            with self.stage("momentum update"):
                for slow, fast in zip(self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True):
                    slow.data = slow.data * self.momentum + fast.data * (1 - self.momentum)
            with self.stage("shuffle, enqueue"):
                order = torch.randperm(len(key))
                key = key[order]
            with self.stage("k forward"):
                k = F.normalize(self.encoder_k(key), dim=1)
            with self.stage("shuffle, enqueue"):
                k = k[order.argsort()]
        with self.stage("logits, loss"):
            positive = torch.einsum("nc,nc->n", q, k)[:, None]  # [B, 1]
            negative = torch.einsum("nc,ck->nk", q, self.queue.clone().detach())  # [B, K]
            logits = torch.cat([positive, negative], dim=1) / self.temperature
            loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
        with self.stage("shuffle, enqueue"):
            self.queue[:, self.pointer : self.pointer + len(k)] = k.T  # K is a multiple of the batch
            self.pointer = (self.pointer + len(k)) % self.queue.shape[1]
        return loss
