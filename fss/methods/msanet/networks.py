"""The networks of BAM and MSANet that depend on options: the base learner, the weights of shots, the embedding."""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from fss.collectives import Collectives
from fss.errors import ConfigError, WeightsError
from fss.methods.msanet.config import EnsembleConfig
from fss.nn.ensemble import LearnedShotWeights, ShotWeights
from fss.nn.exports import ExportHeader
from fss.nn.multisim import SimilarityEmbedding, layer_count
from fss.nn.pspnet import PSPNet
from fss.nn.weights import load_base


def load_base_learner(config: EnsembleConfig, header: ExportHeader | None) -> tuple[PSPNet, ExportHeader]:
    """Build the frozen base learner of `config`; returned with the header of its training.

    With the `header` of an export, which contains the base learner's own, no file is read: the weights are then
    uninitialized memory, and the caller loads them.
    Raises ConfigError or WeightsError if the file is missing or does not fit.
    """
    state = None
    if header is not None:
        if header.base is None:
            raise WeightsError(f"these weights of {config.name} contain no base learner: give a complete export")
        base = header.base
    elif config.base_weights:
        state, base = load_base(Path(config.base_weights))
    else:
        raise ConfigError(
            f"method.base_weights names no file, but {config.name} begins with a trained base learner: train one with "
            "launch/train_base.py and give the base.safetensors of its run"
        )
    for name in ("backbone", "stem"):
        if getattr(base, name) != getattr(config, name):
            raise ConfigError(
                f"method.{name} is {getattr(config, name)} but the base learner was trained with "
                f"{getattr(base, name)}: set method.{name} to {getattr(base, name)}, or give another base learner"
            )
    with torch.device("meta"):  # random weights that a file replaces would take seconds
        network = PSPNet(config.backbone, config.stem, len(base.classes or ()))
    network.to_empty(device="cpu")
    if state is not None:
        network.load_state_dict(state)
    network.requires_grad_(False).eval()
    return network, base


def shot_weights(config: EnsembleConfig) -> ShotWeights | LearnedShotWeights:
    """Build the module that weighs the shots of an episode, as `kshot` names it."""
    match config.kshot:
        case "psi":
            return ShotWeights(config.temperature)
        case "mean":
            return ShotWeights(math.inf)
        case "learned":
            return LearnedShotWeights(config.shots, sorted_weights=config.reference)


def similarity_embedding(config: EnsembleConfig, collectives: Callable[[], Collectives]) -> SimilarityEmbedding | None:
    """Build the embedding of the similarity maps; None without multi-similarity.

    collectives: of the ranks over whose batches batch norm takes its statistics if `similarity_bn` is 'batch'.
    """
    if not config.multi_similarity:
        return None
    return SimilarityEmbedding(layer_count(config.backbone), collectives if config.similarity_bn == "batch" else None)
