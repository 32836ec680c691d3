"""Images beside index maps, one PNG each, of any classes: ADE20K, Cityscapes, users' own labelled sets."""

from dataclasses import dataclass
from pathlib import Path

from shards.format import IGNORE_LABEL, ShardError
from shards.sources import Sample, Source, index_masks, read_file, read_index_map, require_folder, unique_keys
from shards.sources.folder import SUFFIXES, files_below

MAX_CLASSES = 254  # a byte has two more values, for background and ignored pixels


@dataclass(frozen=True)
class IndexedItem:
    """`Item`: a photograph and its index map."""

    key: str
    source: str
    image: Path
    mask: Path
    first: int
    """Index of the first class, whose class id is 1."""
    count: int
    """Number of classes; their indices are contiguous."""
    ignored: int

    def read(self) -> Sample:
        indices = range(self.first, self.first + self.count)
        index_to_mask, ignore = index_masks(
            read_index_map(self.mask), indices, self.ignored, background=0 if self.first else None
        )
        masks = {index - self.first + 1: mask for index, mask in index_to_mask.items()}
        return Sample(image=read_file(self.image), masks=masks, paint=sorted(masks), ignore=ignore)


def indexed(
    images: Path,
    masks: Path,
    names: Path,
    *,
    ignored: int = IGNORE_LABEL,
    first: int = 1,
    image_ending: str = "",
    mask_ending: str = ".png",
) -> Source:
    """Return the images below `images`, each with the index map of the same name and subfolder below `masks`.

    names: a file with a class name a line. The first line is index `first` of the maps (1: index 0 is background; 0:
    there is none) and always class id 1. Pixels of the index `ignored` are ignored, never an object. Endings are
    removed before names are compared; without an image_ending every JPEG and PNG is an image.

    Raises ShardError if two images have one name, or the list of names is empty, too long or unclear.
    """
    images = require_folder(images, "--images is the folder that holds the images")
    masks = require_folder(masks, "--masks is the folder that holds an index map for each image")
    classes = _read_names(names)
    photographs: dict[str, Path] = {}  # name -> path below the folder
    for path in files_below(images, (image_ending.lower(),) if image_ending else SUFFIXES):
        name = str(path)[: -len(image_ending)] if image_ending else str(path.with_suffix(""))
        if name in photographs:
            raise ShardError(
                f"{path} and {photographs[name]} in {images} have the same name: give --image-ending, the ending of "
                "those that are images"
            )
        photographs[name] = path
    maps = {str(path)[: -len(mask_ending)]: path for path in files_below(masks, (mask_ending.lower(),))}
    if not photographs.keys() & maps.keys():
        raise ShardError(
            f"no image in {images} has an index map of its name in {masks}: do --image-ending and --mask-ending fit?"
        )
    # The union of both folders, so that an image or a map without its partner is reported.
    stems = sorted(photographs.keys() | maps.keys())
    sources = [str(photographs.get(name, f"{name}{image_ending or SUFFIXES[0]}")) for name in stems]
    return Source(
        name="indexed",
        classes=classes,
        items=[
            IndexedItem(
                key,
                source,
                images / source,
                masks / maps.get(name, f"{name}{mask_ending}"),
                first,
                len(classes),
                ignored,
            )
            for key, source, name in zip(unique_keys(stems, sources), sources, stems, strict=True)
        ],
        arguments={
            "images": str(images),
            "masks": str(masks),
            "mask_ending": mask_ending,
            "ignored": ignored,
            "first": first,
        },
    )


def _read_names(path: Path) -> dict[int, str]:
    """Read class id -> name."""
    names = [line.strip() for line in read_file(path).decode("utf-8-sig", "replace").rstrip().splitlines()]
    if not 0 < len(names) <= MAX_CLASSES:
        raise ShardError(f"{path} names {len(names)} classes: give 1 to {MAX_CLASSES}, a line each")
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            fault = f"repeats {name!r}" if name else "is empty"
            raise ShardError(f"line {number} of {path} {fault}: give every class a name of its own, in order of index")
    return dict(enumerate(names, start=1))
