"""The context modules of BAM and MSANet against recorded outputs of theirs."""

import re
from collections.abc import Mapping

import numpy as np
import torch

from fss.nn.aspp import ASPP
from fss.nn.ppm import PPM

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def check_ppm(golden: Mapping[str, np.ndarray]) -> None:
    """The entries ppm/* of a file like misc.npz; the bins are the reference's constants."""
    theirs = recorded(golden, "ppm/sd/")
    state = {re.sub(r"features\.(\d+)\.1\.", r"reduce.\1.0.", n): t for n, t in theirs.items()}
    state = {re.sub(r"features\.(\d+)\.2\.", r"reduce.\1.1.", n): t for n, t in state.items()}
    width, channels = state["reduce.0.0.weight"].shape[:2]
    reproduce(PPM(channels, width), state, golden, "ppm")


def check_aspp(golden: Mapping[str, np.ndarray]) -> None:
    """The entries aspp/* of a file like misc.npz; the dilations are the reference's constants."""
    theirs = recorded(golden, "aspp/sd/")
    places = ["whole", "point", "atrous.0", "atrous.1", "atrous.2"]
    state = {re.sub(r"layer6_(\d)\.0", lambda m: places[int(m[1])], n): t for n, t in theirs.items()}
    reproduce(ASPP(state["point.weight"].shape[1]), state, golden, "aspp")


def recorded(golden: Mapping[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors below `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): torch.from_numpy(golden[name]) for name in golden if name.startswith(prefix)}


def reproduce(module: torch.nn.Module, state: dict, golden: Mapping[str, np.ndarray], name: str) -> None:
    """`module` with exactly this state maps the recorded input to the recorded output, and says so of its channels."""
    module.load_state_dict(state)
    with torch.no_grad():
        out = module.eval()(torch.from_numpy(golden[f"{name}/in"])).numpy()
    assert out.shape[1] == module.channels, f"{name}: {out.shape[1]} channels, not {module.channels} as announced"
    np.testing.assert_allclose(out, golden[f"{name}/out"], **TOLERANCE, err_msg=name)
