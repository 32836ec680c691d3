"""Files of weights that others published, and networks whose tensors have the published names."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fss.errors import WeightsError
from fss.nn.exports import ExportHeader, load_export


def read_weights(path: Path) -> tuple[dict[str, Tensor], ExportHeader]:
    """Read a .safetensors file, or a file that torch.save wrote: its tensors, floats as float32, and its header.

    Only safetensors has a header. A table of tensors under `state_dict` is unwrapped. Nothing but tensors and plain
    containers is unpickled. Raises WeightsError if the file is missing, damaged, or holds no table of tensors.
    """
    path = Path(path)
    tensors, header = load_export(path) if path.suffix == ".safetensors" else (_load_torch(path), ExportHeader())
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, header


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, kind: str) -> None:
    """Load the `tensors` of the file at `path` into `network`, whose kind the error names.

    Raises WeightsError if a tensor is missing, unknown or of another shape.
    """
    own = {name: t.shape for name, t in network.state_dict().items()}
    odd = {name for name, _ in own.items() ^ {name: t.shape for name, t in tensors.items()}.items()}
    if odd:
        raise WeightsError(
            f"{path} looks like {kind} but {len(odd)} of its tensors are missing, unknown or of another shape, "
            f"{min(odd)} first: give a complete file"
        )
    network.load_state_dict(tensors)


def recognise(
    path: Path,
    tensors: Mapping[str, Tensor],
    trait: Callable[[Mapping[str, Tensor]], int | None],
    kinds: Mapping[int, str],
    family: str,
    option: str,
    wanted: str,
) -> None:
    """Raise WeightsError unless the file at `path` holds the kind of network that is `wanted`.

    trait: gives the number that tells the kinds of a family apart, None if the file is of another family. kinds: that
    number -> the value of `option`, such as method.sam.
    """
    number = trait(tensors)
    kind = None if number is None else kinds.get(number)
    if kind is None:
        some = ", ".join(sorted(tensors)[:3]) or "no tensor"
        raise WeightsError(f"{path} holds no {family} (it holds {some}, ...): give weights of {family} {wanted}")
    if kind != wanted:
        raise WeightsError(
            f"{path} holds the weights of {family} {kind} but {option} is {wanted}: set {option} to {kind} or give "
            f"weights of {wanted}"
        )


def _load_torch(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"{path} is no file, so it cannot be read: check the path of the weights")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} cannot be read as a file of tensors ({reason}): give another file") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise WeightsError(
            f"{path} holds no table of tensors: give a state dict, a published file of weights as it is, or a "
            ".safetensors export of this program"
        )
    return state
