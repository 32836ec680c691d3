"""What methods take over from a base learner that launch/train_base.py trained."""

from pathlib import Path

import torch

from fss.errors import ConfigError, WeightsError
from fss.methods.msanet.config import BAMConfig
from fss.nn.exports import ExportHeader
from fss.nn.pspnet import PSPNet
from fss.nn.weights import load_base


def base_learner(config: BAMConfig, header: ExportHeader | None) -> tuple[PSPNet, ExportHeader]:
    """The base learner that `config` names, frozen, and the header that tells of its training.

    With the `header` of an export, which has the base learner's own, no file is read, and the weights are whatever
    was in memory, for the caller to load.
    Raises ConfigError or WeightsError where the file is missing or does not fit.
    """
    state = None
    if header is not None:
        if header.base is None:
            raise WeightsError(f"these weights of {config.name} hold no base learner: give a complete export")
        known = header.base
    elif config.base_weights:
        state, known = load_base(Path(config.base_weights))
    else:
        raise ConfigError(
            f"method.base_weights names no file, but {config.name} begins with a trained base learner: train one with "
            "launch/train_base.py and give the base.safetensors of its run"
        )
    for name in ("backbone", "stem"):
        if getattr(known, name) != getattr(config, name):
            raise ConfigError(
                f"method.{name} is {getattr(config, name)} but the base learner was trained with {getattr(known, name)}: set "
                f"method.{name} to {getattr(known, name)}, or give another base learner"
            )
    with torch.device("meta"):  # to draw weights that a file replaces would take seconds
        network = PSPNet(config.backbone, config.stem, len(known.classes or ()))
    network.to_empty(device="cpu")
    if state is not None:
        network.load_state_dict(state)
    network.requires_grad_(False).eval()
    return network, known
