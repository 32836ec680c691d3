"""DeepGlobe and ISIC 2018 as GF-SAM evaluates on them: small sets of other domains, all of whose classes are novel."""

from fss.datasets.base import BINARY_MASKS, NO_LIST_PUBLISHED, SMALL_OBJECTS, DataSet, ProtocolChanges, all_novel
from shards.sources import deepglobe, isic

GFSAM: ProtocolChanges = {**BINARY_MASKS, "draw": "round_robin", "episodes": 600, "note": NO_LIST_PUBLISHED}

DEEPGLOBE = DataSet(
    name="deepglobe",
    title="DeepGlobe",
    packers=("deepglobe",),
    folds=1,
    rule="all 6 classes",
    split=all_novel("deepglobe", tuple(deepglobe.CLASSES.values())),
    has_base_classes=False,
    protocols=("default", "gfsam"),
    changes={"default": SMALL_OBJECTS, "gfsam": GFSAM},
)
ISIC = DataSet(
    name="isic",
    title="ISIC 2018",
    packers=("isic",),
    folds=1,
    rule="all 3 classes",
    split=all_novel("isic", tuple(isic.CLASSES.values())),
    has_base_classes=False,
    protocols=("default", "gfsam"),
    changes={"default": SMALL_OBJECTS, "gfsam": GFSAM},
)
