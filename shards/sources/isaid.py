"""iSAID in patches of 256 pixels, the layout of iSAID-5i: aerial photographs beside index maps of 15 classes."""

from dataclasses import dataclass
from pathlib import Path

from shards.format import IGNORE_LABEL, ShardError
from shards.sources import Sample, Source, index_masks, read_file, read_index_map, require_folder, unique_keys

CLASSES = dict(
    enumerate(
        (
            "ship",
            "store_tank",
            "baseball_diamond",
            "tennis_court",
            "basketball_court",
            "ground_track_field",
            "bridge",
            "large_vehicle",
            "small_vehicle",
            "helicopter",
            "swimming_pool",
            "roundabout",
            "soccer_ball_field",
            "plane",
            "harbor",
        ),
        start=1,
    )
)
SUFFIX = "_instance_color_RGB.png"


@dataclass(frozen=True)
class IsaidItem:
    """`Item`: a patch and its index map."""

    key: str
    source: str
    image: Path
    mask: Path

    def read(self) -> Sample:
        masks, ignore = index_masks(read_index_map(self.mask), CLASSES, IGNORE_LABEL)
        return Sample(image=read_file(self.image), masks=masks, paint=sorted(masks), ignore=ignore)


def isaid(root: Path) -> Source:
    """A part of iSAID's patches (``iSAID_patches/val``): ``images/NAME.png`` +
    ``semantic_png/NAME_instance_color_RGB.png``.

    Class ids are the indices 1..15 of the data set's authors; 255 is ignored, never an object. Keys are the names of
    the patches, as in the published episode lists. Patches without an object are packed too. Raises ShardError if there
    is no patch.
    """
    root = require_folder(root, "--root is the folder that holds images and semantic_png, such as iSAID_patches/val")
    images = require_folder(root / "images", "--root is the folder that holds it")
    masks = require_folder(root / "semantic_png", "--root is the folder that holds it")
    # The union of both folders, so that a patch or a mask without its partner is reported.
    names = sorted(
        {path.stem for path in images.glob("*.png")}
        | {path.name.removesuffix(SUFFIX) for path in masks.glob(f"*{SUFFIX}")}
    )
    if not names:
        raise ShardError(f"no patch *.png in {images}: is it iSAID cut to patches?")
    return Source(
        name="isaid",
        classes=CLASSES,
        items=[
            IsaidItem(key, f"images/{name}.png", images / f"{name}.png", masks / f"{name}{SUFFIX}")
            for key, name in zip(unique_keys(names, names), names, strict=True)
        ],
        arguments={"root": str(root)},
    )
