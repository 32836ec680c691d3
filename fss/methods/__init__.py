"""The few-shot segmentation systems, a file or a folder each, with the config beside the model.

`base` is the contract that training and evaluation rely on, `frozen_backbone` what most of the methods share,
`registry` the table of names. Modules here import `fss.nn`, `fss.data.batch`, `fss.collectives` and `fss.errors`,
nothing else of the project.
"""

from pathlib import Path

from fss.errors import WeightsError
from fss.methods.base import EpisodeMethod
from fss.methods.base_learner import BaseLearner
from fss.methods.gfsam import GFSAM
from fss.methods.msanet.method import BAM, MSANet
from fss.methods.mshnet import MSHNet
from fss.methods.prior.method import PriorExtractor
from fss.methods.prototype import Prototype
from fss.methods.qgnet.method import QGNet
from fss.methods.registry import MethodRegistry
from fss.nn.exports import ExportHeader, load_export

METHODS = MethodRegistry(
    {
        "prior": PriorExtractor,
        "base": BaseLearner,
        "prototype": Prototype,
        "qgnet": QGNet,
        "bam": BAM,
        "msanet": MSANet,
        "mshnet": MSHNet,
        "gfsam": GFSAM,
    }
)
"""Name of a method, as users type it -> its class."""


def load_method(path: Path) -> tuple[EpisodeMethod, ExportHeader]:
    """Build the method that a run exported to `path`, with its weights; returned with the header of the file.

    Raises WeightsError if the file is damaged, is not the export of a trained method for episodes, or does not fit this
    version, ConfigError if the method is of another package and cannot be imported.
    """
    tensors, header = load_export(path)
    name = header.method
    method = METHODS[name] if name is not None and name in METHODS else None
    if method is None or not issubclass(method, EpisodeMethod) or not method.requires_training:
        able = [known for known, kind in METHODS.items() if issubclass(kind, EpisodeMethod) and kind.requires_training]
        raise WeightsError(
            f"{path} holds {name or 'weights without the name of a method'}, which is not evaluated on episodes: give "
            f"the export of a run of {', '.join(able)}"
        )
    try:
        return method.restore(tensors, header), header
    except (WeightsError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} was written by another version ({error}): evaluate it with that one") from None
