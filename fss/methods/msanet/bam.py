"""BAM (Lang et al. 2022): MSANet without multi-similarity and attention, and with PFENet's prior mask."""

from fss.methods.msanet.config import BAMConfig
from fss.methods.msanet.method import MSANet


class BAM(MSANet):
    """See MSANet; the config has what is different."""

    Config = BAMConfig
    ablations = ("output", "prototype")
