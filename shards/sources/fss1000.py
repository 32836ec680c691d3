"""FSS-1000: a folder a class, photographs ``N.jpg`` beside binary masks ``N.png``."""

from pathlib import Path

from shards.format import ShardError
from shards.sources import Source, require_folder, unique_keys
from shards.sources.binary import BinaryItem


def fss1000(root: Path) -> Source:
    """FSS-1000 in its own layout ``class/N.jpg`` + ``class/N.png``.

    Class ids count the sorted names of the class folders from 1; keys are ``class_N``. Raises ShardError if there is no
    image.
    """
    root = require_folder(root, "--root is the folder that holds one folder a class")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = {class_id: folder.name for class_id, folder in enumerate(folders, start=1)}
    # The union of both suffixes, so that a photograph or a mask without its partner is reported.
    found = [
        (class_id, folder / f"{stem}.jpg")
        for class_id, folder in enumerate(folders, start=1)
        for stem in sorted({path.stem for path in folder.iterdir() if path.suffix in (".jpg", ".png")}, key=_natural)
    ]
    if not found:
        raise ShardError(f"no class/N.jpg below {root}: is it the folder that holds one folder a class?")
    sources = [str(image.relative_to(root)) for _, image in found]
    keys = unique_keys([f"{image.parent.name}_{image.stem}" for _, image in found], sources)
    return Source(
        name="fss1000",
        classes=classes,
        items=[
            BinaryItem(key, source, class_id, image, image.with_suffix(".png"))
            for key, source, (class_id, image) in zip(keys, sources, found, strict=True)
        ],
        arguments={"root": str(root)},
    )


def _natural(stem: str) -> tuple:
    return (0, int(stem), "") if stem.isdecimal() else (1, 0, stem)
