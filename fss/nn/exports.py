"""Exports: files of weights that a run leaves for other jobs, with a header on how they were trained.

An export is a safetensors file. Its header is a table of strings; `ExportHeader` is its typed form.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, get_args, get_type_hints

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fss.errors import WeightsError
from shards.format import atomic_write


@dataclass(frozen=True, kw_only=True)
class ExportHeader:
    """Facts about exported weights. A field is None if it does not apply, or if an older version wrote the file.

    In the file, text stands as it is and everything else as JSON.
    """

    format: str | None = None
    """'pt', which names the tensors as PyTorch's to other programs."""
    method: str | None = None
    """The method's name; 'moco' for an official MoCo checkpoint."""
    config: dict[str, Any] | None = None
    """The method's options."""
    recipe: dict[str, Any] | None = None
    """The options of a prior extractor."""
    backbone: str | None = None
    """Name of the backbone, see fss.nn.backbones."""
    stem: str | None = None
    """Stem of the backbone."""
    encoder: str | None = None
    """The encoder of a prior extractor that was exported: 'momentum'."""
    classes: dict[str, str] | None = None
    """Id -> name of the classes of a base learner's outputs 1, 2, ..., by ascending id."""
    base: "ExportHeader | None" = None
    """Header of the base learner inside these weights, as in its own file."""
    prior: "ExportHeader | None" = None
    """Header of the prior extractor inside these weights, as in its own file."""
    data: str | None = None
    """Name of the training set."""
    images: int | None = None
    """Images in that set."""
    steps: int | None = None
    """Optimizer steps."""
    epochs: float | None = None
    """Passes over the set."""
    images_seen: int | None = None
    """Images in all batches of all ranks."""
    episodes_seen: int | None = None
    """Episodes in all batches of all ranks."""
    scheme: str | None = None
    """Convention of the folds, see fss.data.folds."""
    fold: int | None = None
    """Number of the fold."""
    novel: list[int] | None = None
    """Ids of the novel classes."""
    held_out: list[int] | None = None
    """Ids of the base classes that were kept out of training for validation."""
    shots: int | None = None
    """Supports of a training episode."""
    novel_in_training: str | None = None
    """Treatment of training images that show novel classes: 'background' or 'drop'."""
    selected_on: str | None = None
    """Classes on which the best weights were chosen: 'base', 'novel' or 'none'."""
    score: float | None = None
    """Score of these weights at the validation that chose them, a fraction."""
    scored_by: str | None = None
    """Name of the logged value in `score`."""
    knn: float | None = None
    """Last kNN accuracy of a prior extractor, a fraction."""
    best_miou: float | None = None
    """Best mIoU of a base learner, a fraction."""
    code: str | None = None
    """Version of the code, see fss.provenance."""
    job: dict[str, Any] | None = None
    """The whole configuration of the run."""

    @classmethod
    def parse(
        cls, metadata: Mapping[str, str], source: str = "the header of the weights", *, ours: bool = False
    ) -> Self:
        """Read the typed form of a file's table of strings; entries that this version does not know are left out.

        source: what the table is from, for the error. ours: the table was written by this program, as every one that
        names a method. Of another program's table, entries that are not of their type are left out, too.
        Raises WeightsError if an entry of ours is not of its type.
        """
        ours = ours or "method" in metadata
        values: dict[str, Any] = {}
        for name, kind in _types().items():
            if name not in metadata:
                continue
            text = metadata[name]
            if kind is str:
                values[name] = text
                continue
            try:
                value = json.loads(text)
                values[name] = _parsed(value, kind, f"{source}, {name},")
            except (WeightsError, ValueError, TypeError) as error:
                if not ours:
                    continue
                if isinstance(error, WeightsError):
                    raise  # of a nested header, which names the entry
                raise WeightsError(f"{source} has a damaged entry {name} ({error}): give another file") from None
        return cls(**values)

    def table(self) -> dict[str, str]:
        """The table of strings that a file holds; fields that are None are left out."""
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: _text(value) for name, value in known.items() if value is not None}

    @property
    def learned(self) -> bool:
        """True if the weights were trained on episodes of a fold."""
        return self.scheme is not None

    @property
    def unseen_classes(self) -> set[int] | None:
        """Ids of the classes that training did not learn from; None if the file does not say."""
        return None if self.novel is None else {*self.novel, *(self.held_out or [])}

    @property
    def class_names(self) -> dict[int, str]:
        """`classes` with whole numbers as ids."""
        return {int(number): name for number, name in (self.classes or {}).items()}


def _types() -> dict[str, type]:
    """Field -> the type of its value, without None."""
    hints = get_type_hints(ExportHeader)
    return {
        f.name: next(kind for kind in get_args(hints[f.name]) if kind is not type(None)) for f in fields(ExportHeader)
    }


def _text(value: Any) -> str:
    if isinstance(value, ExportHeader):
        value = value.table()
    return value if isinstance(value, str) else json.dumps(value)


def _parsed(value: Any, kind: Any, source: str) -> Any:
    """A value of JSON as the type `kind` of a field; whole numbers also as floats. Raises TypeError if it is none.

    A nested header that is empty, as older versions wrote it, is None. Raises WeightsError if an entry of one is
    damaged.
    """
    outer = getattr(kind, "__origin__", kind)
    if value is None:
        return None
    if outer is ExportHeader:
        table = _parsed(value, dict, source)
        return ExportHeader.parse(table, source, ours=True) if table else None
    if outer is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, outer) or (outer is int and isinstance(value, bool)):
        raise TypeError(f"{value!r:.40} is no {outer.__name__}")
    return value


def save_export(path: Path, tensors: Mapping[str, Tensor], header: ExportHeader) -> None:
    """Write tensors and their header as safetensors, whole or not at all.

    Raises OSError if the disk does not take the file.
    """
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with atomic_write(Path(path)) as temporary:
        save_file(contiguous, temporary, header.table())


def load_export(path: Path) -> tuple[dict[str, Tensor], ExportHeader]:
    """Read the tensors and the header of a safetensors file. Raises WeightsError if it is missing or damaged."""
    if not Path(path).is_file():
        raise WeightsError(f"{path} is no file, so it cannot be read: check the path of the weights")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, ExportHeader.parse(file.metadata() or {}, f"the header of {path}")
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors ({error}): copy it again") from None


def read_header(path: Path) -> ExportHeader:
    """Read the header of an export and no tensor. Raises WeightsError if the file is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return ExportHeader.parse(file.metadata() or {}, f"the header of {path}")
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors ({error}): give the export of a run") from None
