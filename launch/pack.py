"""Pack a data set in its own folder layout into shards.

    python launch/pack.py voc --root VOC2012 --ids VOC2012/ImageSets/Segmentation/train.txt --out packed/voc
    python launch/pack.py coco --images train2017 --annotations annotations/instances_train2017.json --out packed/coco
    python launch/pack.py fss1000 --root fewshot_data --out packed/fss1000
    python launch/pack.py indexed --images photos --masks index_maps --classes names.txt --out packed/mine
    python launch/pack.py lvis --images coco --annotations lvis_v1_val.json --out packed/lvis
    python launch/pack.py folder --root photos --out packed/photos
    python launch/pack.py synthetic --out packed/synthetic

The same command continues a run that was stopped, and tries bad samples again.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.format import IGNORE_LABEL, Manifest, ShardError
from shards.sources import Source
from shards.sources.coco import coco
from shards.sources.deepglobe import deepglobe
from shards.sources.folder import folder
from shards.sources.fss1000 import fss1000
from shards.sources.indexed import indexed
from shards.sources.isaid import isaid
from shards.sources.isic import isic
from shards.sources.lvis import lvis
from shards.sources.paco import paco
from shards.sources.pascal_part import pascal_part
from shards.sources.voc import voc
from shards.superpixels import ALGORITHMS
from shards.synthetic import synthetic
from shards.workers import cores
from shards.write import SAMPLES_PER_SHARD, pack

LISTED = 20  # bad files listed on the terminal; the manifest has all
NAMED = 3  # of them in the error about too many
SOURCES: dict[str, Callable[[argparse.Namespace], Source]] = {
    "voc": lambda a: voc(a.root, a.ids, a.masks, sbd=a.sbd, exclude=a.exclude),
    "coco": lambda a: coco(a.images, a.annotations, a.crowd),
    "fss1000": lambda a: fss1000(a.root),
    "indexed": lambda a: indexed(
        a.images,
        a.masks,
        a.classes,
        ignored=a.ignore,
        first=a.first,
        image_ending=a.image_ending,
        mask_ending=a.mask_ending,
    ),
    "lvis": lambda a: lvis(a.images, a.annotations),
    "paco": lambda a: paco(a.images, a.annotations, a.train),
    "pascal_part": lambda a: pascal_part(a.root, a.split),
    "deepglobe": lambda a: deepglobe(a.root),
    "isic": lambda a: isic(a.root, a.classes),
    "isaid": lambda a: isaid(a.root),
    "folder": lambda a: folder(a.root),
    "synthetic": lambda a: synthetic(a.count, a.seed),
}


def share(text: str) -> float:
    """Parse a number from 0 to 1. Raises ValueError for anything else."""
    if not 0 <= (number := float(text)) <= 1:
        raise ValueError
    return number


class Parser(argparse.ArgumentParser):
    """Argument parser that reports an error in one sentence instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one sentence."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parser() -> Parser:
    """Return the parser of the command line, one subcommand a layout."""
    common = Parser(add_help=False, allow_abbrev=False)
    common.add_argument("--out", type=Path, required=True, help="folder for the shards and their manifest.json")
    common.add_argument(
        "--superpixels",
        nargs="*",
        default=["slic"],
        choices=list(ALGORITHMS),
        metavar="ALGORITHM",
        help=f"label maps to store with each image, any of {', '.join(ALGORITHMS)}; none for no maps (default: slic)",
    )
    common.add_argument("--processes", type=int, default=cores(), help="default: one a core that it may use")
    common.add_argument(
        "--allow-bad",
        type=share,
        default=0.01,
        metavar="SHARE",
        help="of the samples that may be bad, 0 to 1; with more the exit status is 2 (default: %(default)s)",
    )
    common.add_argument(
        "--samples-per-shard", type=int, default=SAMPLES_PER_SHARD, help="at most (default: %(default)s)"
    )

    top = Parser(
        prog="launch/pack.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = top.add_subparsers(dest="kind", required=True, metavar="LAYOUT", parser_class=Parser)

    def add(name: str, help: str) -> Parser:
        return kinds.add_parser(name, help=help, parents=[common], allow_abbrev=False)

    kind = add("voc", "PASCAL VOC (JPEGImages, SegmentationClassAug or SegmentationClass) or SBD (img, cls/*.mat)")
    kind.add_argument("--root", type=Path, required=True, help="folder that holds JPEGImages, or SBD's img")
    kind.add_argument(
        "--ids", type=Path, required=True, nargs="+", help="lists: ids, 'image.jpg mask.png' or 'id__class' a line"
    )
    kind.add_argument("--exclude", type=Path, help="list of what to leave out, such as VOC's val.txt")
    kind.add_argument("--masks", help="folder of index maps below the root (default: the first there is)")
    kind.add_argument("--sbd", type=Path, help="folder that holds SBD's cls, for the ids without a map below the root")
    kind = add("coco", "COCO 2014 or 2017 from the official instances JSON")
    kind.add_argument("--images", type=Path, required=True, help="folder of photographs")
    kind.add_argument("--annotations", type=Path, required=True, help="instances_*.json")
    kind.add_argument(
        "--crowd",
        choices=("ignore", "object"),
        default="ignore",
        help="what regions with iscrowd 1 are; masks exported by CVAT are objects (default: %(default)s)",
    )
    kind = add("fss1000", "FSS-1000 (class/N.jpg + class/N.png)")
    kind.add_argument("--root", type=Path, required=True, help="folder that holds one folder a class")
    kind = add("indexed", "images beside one index map each, as ADE20K and Cityscapes have them")
    kind.add_argument("--images", type=Path, required=True, help="folder of photographs, searched recursively")
    kind.add_argument("--masks", type=Path, required=True, help="folder of index maps, palette or grey PNGs of 8 bits")
    kind.add_argument("--classes", type=Path, required=True, help="file with a class name a line, in order of index")
    kind.add_argument(
        "--first",
        type=int,
        choices=(0, 1),
        default=1,
        help="index of the first class; with 1, index 0 is background (default: %(default)s)",
    )
    kind.add_argument("--ignore", type=int, default=IGNORE_LABEL, help="index to ignore (default: %(default)s)")
    kind.add_argument(
        "--image-ending",
        default="",
        help="of an image's name behind what its mask's name begins with, "
        "such as _leftImg8bit.png (default: .jpg, .jpeg or .png)",
    )
    kind.add_argument("--mask-ending", default=".png", help="likewise of a mask's name (default: %(default)s)")
    kind = add("lvis", "LVIS v1 from the official JSON")
    kind.add_argument("--images", type=Path, required=True, help="folder that holds COCO's train2017 and val2017")
    kind.add_argument("--annotations", type=Path, required=True, help="lvis_v1_train.json or lvis_v1_val.json")
    kind = add("paco", "PACO-Part from the official PACO-LVIS JSON, cut to objects")
    kind.add_argument("--images", type=Path, required=True, help="folder that holds COCO's train2017 and val2017")
    kind.add_argument("--annotations", type=Path, required=True, help="paco_lvis_v1_*.json of the part to pack")
    kind.add_argument("--train", type=Path, required=True, help="paco_lvis_v1_train.json: the classes are those in it")
    kind = add("pascal_part", "PASCAL-Part with merged part classes (JSON), cut to objects")
    kind.add_argument("--root", type=Path, required=True, help="VOCdevkit/VOC2010")
    kind.add_argument("--split", choices=("train", "val"), default="val", help="default: %(default)s")
    kind = add("deepglobe", "DeepGlobe land cover, a folder a class ({1..6}/test/origin, {1..6}/test/groundtruth)")
    kind.add_argument("--root", type=Path, required=True, help="folder that holds 1 to 6")
    kind = add("isic", "ISIC 2018, task 1, with a table of classes")
    kind.add_argument("--root", type=Path, required=True, help="folder that holds ISIC2018_Task1-2_Training_Input")
    kind.add_argument("--classes", type=Path, required=True, help="class_id.csv, with the columns ID and Class")
    kind = add("isaid", "iSAID in patches (images/NAME.png, semantic_png/NAME_instance_color_RGB.png)")
    kind.add_argument("--root", type=Path, required=True, help="folder that holds images and semantic_png")
    kind = add("folder", "unlabelled JPEG and PNG images, searched recursively")
    kind.add_argument("--root", type=Path, required=True, help="folder that holds the images")
    kind = add("synthetic", "a procedural set of 24 classes; needs no data")
    kind.add_argument("--count", type=int, default=400, help="images (default: %(default)s)")
    kind.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Pack and report. Returns 0; 2 if the arguments or the data have a fault; 130 if interrupted.

    If more samples are bad than allowed, the others are packed and it returns 2.
    """
    arguments = parser().parse_args(argv)
    began = time.monotonic()
    try:
        source = SOURCES[arguments.kind](arguments)
        manifest = pack(
            source,
            arguments.out,
            superpixels=arguments.superpixels,
            processes=arguments.processes,
            samples_per_shard=arguments.samples_per_shard,
        )
    except ShardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # while the source is listed; packing has its own messages
        print(f"error: {error.filename} cannot be read ({error.strerror})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; finished shards stay, the same command continues from there", file=sys.stderr)
        return 130
    report(source, manifest, arguments.out, time.monotonic() - began)
    if len(manifest.bad) / len(source.items) > arguments.allow_bad:
        print(f"error: {too_many_bad(source, manifest, arguments)}", file=sys.stderr)
        return 2
    return 0


def too_many_bad(source: Source, manifest: Manifest, arguments: argparse.Namespace) -> str:
    """Return the error for more bad samples than --allow-bad."""
    bad, total = manifest.bad, len(source.items)
    examples = "; ".join(f"{row['source']}: {row['reason']}" for row in bad[:NAMED])
    return (
        f"{len(bad)} of {total} samples are bad, more than --allow-bad {arguments.allow_bad:g} ({examples}"
        f"{'; ...' if len(bad) > NAMED else ''}); the others are packed: repair these and run the same command, or "
        f"accept their absence with --allow-bad {math.ceil(100 * len(bad) / total) / 100:g}"
    )


def report(source: Source, manifest: Manifest, out: Path, seconds: float) -> None:
    """Print counts, classes, bad files with reasons, and the next command to type."""
    console = Console(soft_wrap=True, highlight=False)
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    console.print(
        f"{out}: {len(manifest.samples)} of {len(source.items)} images in {len(manifest.shards)} shards, "
        f"{size:.1f} MB, superpixels {', '.join(manifest.superpixels) or 'none'}, {seconds:.0f} s"
    )
    images = dict.fromkeys(manifest.classes, 0)
    for sample in manifest.samples:
        for class_id in sample.classes:
            images[class_id] += 1
    if images:
        counts = " ".join(f"{manifest.classes[class_id]}:{count}" for class_id, count in images.items() if count)
        present = sum(count > 0 for count in images.values())
        console.print(f"{present} of {len(images)} classes have images:")
        console.print(counts, markup=False)
    if manifest.bad:
        table = Table("left out", "reason", title=f"{len(manifest.bad)} bad files (all are listed in manifest.json)")
        for row in manifest.bad[:LISTED]:
            table.add_row(Text(row["source"]), Text(row["reason"]))
        console.print(table, markup=False)
    for message in source.messages:
        console.print(f"note: {message}", markup=False)
    console.print(f"next: python -m shards.check {out}")
    if manifest.superpixels:
        console.print(f"then: accelerate launch launch/pretrain_prior.py --data.shards {out}")


if __name__ == "__main__":
    sys.exit(main())
