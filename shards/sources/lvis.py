"""LVIS v1 straight from the official JSON (``lvis_v1_train.json``, ``lvis_v1_val.json``).

The photographs are those of COCO 2017, in the folders that the JSON's ``coco_url`` ends with: LVIS's validation set has
images of train2017 too. Class ids are the official category ids, 1..1203; a class's mask is
the union of its objects. Keys are the numbers of the images. Overlaps and flat maps are as in shards.sources.coco; LVIS
has no crowd regions.
"""

from pathlib import Path, PurePosixPath

from shards.sources import Source, require_folder
from shards.sources.coco import photographs


def lvis(images: Path, annotations: Path) -> Source:
    """LVIS: the folder `images` with train2017 and val2017, and the JSON `annotations`.

    Raises ShardError if a file is missing or has another form.
    """
    images = require_folder(images, "--images is the folder that holds train2017 and val2017")
    return photographs("lvis", images, annotations, _file, "lvis_v1_*.json")


def _file(record: dict) -> str:
    """Turn ``http://.../val2017/000000397133.jpg`` into ``val2017/000000397133.jpg``."""
    return "/".join(PurePosixPath(record["coco_url"]).parts[-2:])
