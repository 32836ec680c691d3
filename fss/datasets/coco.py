"""COCO-20i: COCO 2014, four folds of 20 classes, by the two conventions of the literature.

PFENet and HSNet read it interleaved, which is the split of FWB (Nguyen and Todorovic 2019); the contiguous one is
PANet's (Wang et al. 2019).
"""

from collections.abc import Mapping

from fss.datasets.base import DataSet, ProtocolChanges, ProtocolName, PublishedTest, divide_by_order

CLASSES = 80
ENDS = ("person", "toothbrush")  # the first and the last in the official order

CHANGES: Mapping[ProtocolName, ProtocolChanges] = {
    "pfenet": {"episodes": 20000, "passes": None},
    "hdmnet": {"episodes": 10000},
    "hsnet": {"draw": "class_image", "ignore_255": False},
    "gfsam": {"draw": "class_image", "ignore_255": False},
}

COCO = DataSet(
    name="coco",
    title="COCO-20i",
    packers=("coco",),
    folds=4,
    rule="classes i+1, i+5, ... i+77",
    split=divide_by_order("coco", "COCO", CLASSES, ENDS, lambda fold: slice(fold, None, 4)),
    changes=CHANGES,
    published_test=PublishedTest(pairs=(35783, 17912, 14563, 14315), min_area=2048),
)
COCO_CONTIGUOUS = DataSet(
    name="coco_contiguous",
    title="COCO-20i",
    packers=("coco",),
    folds=4,
    rule="classes 20i+1 to 20i+20",
    split=divide_by_order("coco_contiguous", "COCO", CLASSES, ENDS, lambda i: slice(20 * i, 20 * i + 20)),
    changes=CHANGES,
)
