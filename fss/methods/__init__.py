"""The systems, by the name that users type."""

from pathlib import Path

from fss.errors import WeightsError
from fss.methods.base import EpisodeMethod, Method
from fss.methods.base_learner import BaseLearner
from fss.methods.gfsam import GFSAM
from fss.methods.msanet.bam import BAM
from fss.methods.msanet.method import MSANet
from fss.methods.mshnet import MSHNet
from fss.methods.prior.method import PriorExtractor
from fss.methods.prototype import Prototype
from fss.methods.qgnet.method import QGNet
from fss.nn.exports import ExportHeader, load_export

METHODS: dict[str, type[Method]] = {
    "prior": PriorExtractor,
    "base": BaseLearner,
    "prototype": Prototype,
    "qgnet": QGNet,
    "bam": BAM,
    "msanet": MSANet,
    "mshnet": MSHNet,
    "gfsam": GFSAM,
}


def load_method(path: Path) -> tuple[EpisodeMethod, ExportHeader]:
    """The method that a run exported to `path`, with its weights, and the header of the file.

    Raises WeightsError where the file is damaged, holds none of METHODS that can be evaluated, or does not fit this
    version.
    """
    tensors, header = load_export(path)
    name = header.method
    able = [
        known for known, method in METHODS.items() if issubclass(method, EpisodeMethod) and method.requires_training
    ]
    if name not in able:
        raise WeightsError(
            f"{path} holds {name or 'weights without the name of a method'}, which is not evaluated on episodes: give "
            f"the export of a run of {', '.join(able)}"
        )
    try:
        return METHODS[name].restore(tensors, header), header
    except (WeightsError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} was written by another version ({error}): evaluate it with that one") from None
