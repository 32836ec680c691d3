"""BAM's ensemble (Lang et al. 2022, sections 4.3 to 4.5).

It measures how unlike query and support look (psi), weighs shots by psi, and joins the prediction of the meta learner
with the base classes that the base learner finds.
"""

import torch
from torch import Tensor, nn

from fss.errors import ConfigError

EPSILON = 1e-7  # added to products of norms
HIDDEN = 2  # width of the learned weighing of shots, as in the reference implementation


def cosine_gram(features: Tensor) -> Tensor:
    """The cosine of each pair of channels over the positions of a map: [B, C, h, w] -> float32 [B, C, C]."""
    rows = features.flatten(2).float()  # [B, C, h w]
    norms = rows.norm(dim=2)
    with torch.autocast(features.device.type, enabled=False):  # psi is a small difference of these
        return rows @ rows.mT / (norms[:, :, None] * norms[:, None] + EPSILON)


def psi(query: Tensor, support: Tensor) -> Tensor:
    """BAM's adjustment factor in 0..1, larger for images that look less alike: `cosine_gram` [B, C, C] -> [B]."""
    return (query - support).flatten(1).norm(dim=1) / query.shape[1]


class ShotWeights(nn.Module):
    """Weights of any number of shots from psi alone: a support that looks more like the query counts more.

    temperature: in units of psi; at infinity all count the same.
    """

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature

    def forward(self, psi: Tensor) -> Tensor:
        """[B, K] -> [B, K], rows of sum 1; exactly 1 for one shot."""
        return (-psi / self.temperature).softmax(1)


class LearnedShotWeights(nn.Module):
    """BAM's weights of K shots: two fully connected layers over their ascending psi, for one K.

    `sorted_weights` repeats a bug of MSANet's reference implementation: the weights stay in ascending order of psi and
    are not put back to their shots.
    """

    def __init__(self, shots: int, sorted_weights: bool):
        super().__init__()
        self.shots = shots
        self.sorted_weights = sorted_weights
        self.layers = nn.Sequential(nn.Linear(shots, HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, shots))

    def forward(self, psi: Tensor) -> Tensor:
        """[B, K] -> [B, K], rows of sum 1. Raises ConfigError for another K."""
        if psi.shape[1] != self.shots:
            raise ConfigError(
                f"method.kshot is learned for method.shots {self.shots} but an episode has {psi.shape[1]} shot(s): set "
                f"episodes.shots to {self.shots}, or train with kshot psi, which takes any number"
            )
        ascending, order = psi.sort(dim=1)
        logits = self.layers(ascending).float()
        if not self.sorted_weights:
            logits = logits.gather(1, order.argsort(dim=1))
        return logits.softmax(1)


def base_map(logits: Tensor, excluded: Tensor | None = None) -> Tensor:
    """The probability of any base class at each position, float32 [B, 1, h, w].

    logits: of a base learner, [B, 1 + n, h, w], background first. excluded: bool [B, n], base classes that do not
    count: in training that of the episode.
    """
    probabilities = logits.float().softmax(1)[:, 1:]
    if excluded is not None:
        probabilities = probabilities.masked_fill(excluded[:, :, None, None], 0)
    return probabilities.sum(1, keepdim=True)


class Ensemble(nn.Module):
    """The meta learner's probabilities, corrected by psi, with the base learner's map added to the background's.

    Both steps are 1x1 convolutions of two inputs without bias, which at first pass on the first input unchanged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.adjust = nn.Parameter(torch.tensor([1.0, 0.0]))  # of a probability and psi
        self.suppress = nn.Parameter(torch.tensor([1.0, 0.0]))  # of the background and the base map

    def forward(self, meta: Tensor, psi: Tensor, base: Tensor) -> Tensor:
        """Meta logits [B, 2, h, w], psi [B] and base map [B, 1, h, w] -> scores of background and class [B, 2, h, w].

        The scores start as probabilities and stay near them; they need not sum to 1 or be positive.
        """
        adjusted = self.adjust[0] * meta.float().softmax(1) + self.adjust[1] * psi[:, None, None, None]
        background, thing = adjusted.split(1, dim=1)
        return torch.cat([self.suppress[0] * background + self.suppress[1] * base, thing], 1)


LEAST = 1e-6  # a score whose logarithm is taken is at least this


def log_scores(scores: Tensor) -> Tensor:
    """Turn scores of `Ensemble`, [B, 2, h, w], into logits [B, 2, h, w] whose softmax is proportional to the scores."""
    return scores.clamp(min=LEAST).log()
