"""The decoder of BAM's meta learner (Lang et al. 2022, section 4.2), which MSANet gives more to merge."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.nn.aspp import ASPP
from fss.nn.fem import classifier, conv3x3, pointwise


class MetaDecoder(nn.Module):
    """Query features, a prototype and further maps -> logits, through atrous pyramid pooling.

    There is no normalisation layer; only the pyramid and the layers that make logits have a bias.
    """

    def __init__(self, dim: int, maps: int, dropout: float, *, prototype: bool = True):
        """maps: channels of all further maps together; prototype: whether `forward` gets one."""
        super().__init__()
        self.widths = [dim, dim * prototype, maps]
        self.merge = nn.Conv2d(sum(self.widths), dim, 1, bias=False)  # inputs in this order
        self.pyramid = ASPP(dim)
        self.join = nn.Conv2d(self.pyramid.channels, dim, 1, bias=False)
        self.smooth = nn.Sequential(conv3x3(dim), nn.ReLU(inplace=True), conv3x3(dim), nn.ReLU(inplace=True))
        self.classify = classifier(dim, dropout)

    def forward(self, query: Tensor, prototype: Tensor | None, maps: Sequence[Tensor]) -> Tensor:
        """query [B, D, h, w], prototype [B, D] if there is one, maps [B, C, h, w] each -> logits [B, 2, h, w]."""
        of_query, of_prototype, of_maps = self.merge.weight.split(self.widths, dim=1)
        sources = torch.cat([query, *(m.to(query.dtype) for m in maps)], 1)
        x = pointwise(sources, torch.cat([of_query, of_maps], 1))
        if prototype is not None:  # the same at every position, so its part is a bias
            x = x + F.linear(prototype, of_prototype.flatten(1))[:, :, None, None]
        x = F.relu(pointwise(self.pyramid(F.relu(x)), self.join.weight))  # [B, D, h, w]
        return self.classify(x + self.smooth(x))
