"""iSAID-5i (Yao et al. 2021): aerial photographs in patches, three folds of five classes."""

from fss.datasets.base import SMALL_OBJECTS, DataSet, divide_by_order
from shards.sources.isaid import CLASSES

ENDS = (CLASSES[1], CLASSES[len(CLASSES)])

ISAID = DataSet(
    name="isaid",
    title="iSAID-5i",
    packers=("isaid",),
    folds=3,
    rule="classes 5i+1 to 5i+5",
    split=divide_by_order("isaid", "iSAID", len(CLASSES), ENDS, lambda fold: slice(5 * fold, 5 * fold + 5)),
    protocols=("default", "gfsam"),
    changes={
        "default": SMALL_OBJECTS,
        "gfsam": {
            "episodes": 5000,
            "passes": 1,
            "min_area": 0,
            "note": "each patch once for each of its classes, in the order of the keys; the published runs have the "
            "order, the patches and the supports of their lists: evaluate these to have them",
        },
    },
)
