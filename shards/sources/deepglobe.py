"""DeepGlobe land cover in the layout of cross-domain few-shot papers: a folder a class of tiles and binary masks."""

from pathlib import Path

from shards.format import ShardError
from shards.sources import Source, require_folder, unique_keys
from shards.sources.binary import BinaryItem

CLASSES = {1: "urban", 2: "agriculture", 3: "rangeland", 4: "forest", 5: "water", 6: "barren"}


def deepglobe(root: Path) -> Source:
    """DeepGlobe in the layout ``{1..6}/test/origin/*.jpg`` + ``{1..6}/test/groundtruth/*.png``.

    Class ids are the numbers of the folders, named in the order of the data set's authors; keys are ``class_tile``. A
    tile in the folders of several classes gives a sample for each. Raises ShardError if a folder has no tile.
    """
    root = require_folder(root, "--root is the folder that holds 1 to 6, each with test/origin and test/groundtruth")
    # The union of both folders, so that a tile or a mask without its partner is reported.
    found = [
        (class_id, folder, stem)
        for class_id in CLASSES
        for folder in [root / str(class_id) / "test"]
        for stem in sorted({path.stem for path in [*folder.glob("origin/*.jpg"), *folder.glob("groundtruth/*.png")]})
    ]
    if missing := [class_id for class_id in CLASSES if class_id not in {class_id for class_id, _, _ in found}]:
        raise ShardError(f"no tile in {root / str(missing[0])}/test/origin: is it the folder that holds 1 to 6?")
    sources = [f"{class_id}/test/origin/{stem}.jpg" for class_id, _, stem in found]
    keys = unique_keys([f"{class_id}_{stem}" for class_id, _, stem in found], sources)
    return Source(
        name="deepglobe",
        classes=CLASSES,
        items=[
            BinaryItem(key, source, class_id, folder / f"origin/{stem}.jpg", folder / f"groundtruth/{stem}.png")
            for key, source, (class_id, folder, stem) in zip(keys, sources, found, strict=True)
        ],
        arguments={"root": str(root)},
    )
