"""Files of weights that others published, put into networks whose tensors have the published names."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fss.errors import WeightsError
from fss.nn.exports import load_export


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a file that torch.save wrote; floats as float32.

    Nothing but tensors and plain containers is unpickled. Raises WeightsError where the file is missing or damaged.
    """
    path = Path(path)
    tensors = load_export(path)[0] if path.suffix == ".safetensors" else _load_torch(path)
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, kind: str) -> None:
    """Give `network`, which is a `kind`, exactly the `tensors` of the file at `path`.

    Raises WeightsError where one is missing, unknown or of another shape.
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

    trait: the number that tells the kinds of a family apart, None where the file is of no such family. kinds: that
    number -> what the user calls it in `option`, such as method.sam.
    """
    found = kinds.get(trait(tensors))
    if found is None:
        some = ", ".join(sorted(tensors)[:3]) or "no tensor"
        raise WeightsError(f"{path} holds no {family} (it holds {some}, ...): give weights of {family} {wanted}")
    if found != wanted:
        raise WeightsError(
            f"{path} holds the weights of {family} {found} but {option} is {wanted}: set {option} to {found} or give "
            f"weights of {wanted}"
        )


def _load_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path} is no file, so it cannot be read: check the path of the weights") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} cannot be read as a file of tensors ({reason}): give another file") from None
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise WeightsError(f"{path} holds no table of tensors: give the published file of weights as it is")
    return content
