"""ISIC 2018, task 1: photographs of skin lesions, binary masks, and a table of their classes."""

import csv
import hashlib
import io
from pathlib import Path

from shards.format import ShardError
from shards.sources import Source, read_file, require_folder, unique_keys
from shards.sources.binary import BinaryItem

IMAGES = "ISIC2018_Task1-2_Training_Input"
MASKS = "ISIC2018_Task1_Training_GroundTruth"
CLASSES = {1: "nevus", 2: "melanoma", 3: "seborrheic_keratosis"}


def isic(root: Path, table: Path) -> Source:
    """ISIC 2018 in its own layout: ``ISIC2018_Task1-2_Training_Input/ID.jpg`` and
    ``ISIC2018_Task1_Training_GroundTruth/ID_segmentation.png`` below `root`.

    table: CSV with the columns ID and Class (nevus, melanoma or seborrheic_keratosis), as cross-domain few-shot papers
    publish it under the name class_id.csv. Raises ShardError for a photograph that it does not list; a row without its
    photograph is a bad file.
    """
    root = require_folder(root, f"--root is the folder that holds {IMAGES} and {MASKS}")
    images = require_folder(root / IMAGES, "--root is the folder that holds it")
    require_folder(root / MASKS, "--root is the folder that holds it")
    raw = read_file(table)
    class_ids = _read_table(table, raw)
    if unlisted := sorted({path.stem for path in images.glob("*.jpg")} - class_ids.keys()):
        raise ShardError(
            f"{table} has no row for {unlisted[0]} ({len(unlisted)} photographs lack one): give the table of all images"
        )
    names = sorted(class_ids)
    return Source(
        name="isic",
        classes=CLASSES,
        items=[
            BinaryItem(
                key,
                f"{IMAGES}/{name}.jpg",
                class_ids[name],
                images / f"{name}.jpg",
                root / MASKS / f"{name}_segmentation.png",
            )
            for key, name in zip(unique_keys(names, names), names, strict=True)
        ],
        arguments={"root": str(root), "table": hashlib.sha256(raw).hexdigest()},
    )


def _read_table(path: Path, raw: bytes) -> dict[str, int]:
    """Read ID -> class id."""
    rows = csv.DictReader(io.StringIO(raw.decode("utf-8-sig", "replace")))
    if not {"ID", "Class"} <= {*(rows.fieldnames or ())}:
        raise ShardError(f"{path} has the columns {rows.fieldnames}: give a CSV with the columns ID and Class")
    ids = {name: class_id for class_id, name in CLASSES.items()}
    class_ids: dict[str, int] = {}
    for row in rows:
        if row["Class"] not in ids:
            raise ShardError(
                f"line {rows.line_num} of {path} gives {row['ID']} the class {row['Class']!r}: expected one of "
                f"{', '.join(ids)}"
            )
        class_ids[row["ID"]] = ids[row["Class"]]
    return class_ids
