"""Where the classes of a fold depend on the shots, an evaluation takes and states those of its own."""

import pytest

from fss.datasets.lvis import CLASSES as LVIS_CLASSES
from fss.evaluate.plan import EvalConfig, FoldConfig, plan_evaluation
from fss.nn.exports import ExportHeader
from shards.format import Manifest, SampleEntry


@pytest.mark.parametrize("shots, count", [(1, 4), (5, 2)])
def test_the_report_states_the_classes_of_its_shots(shots, count):
    """40 classes in 2 photographs or more, every other one in 6."""
    samples = [
        SampleEntry(key=f"{i}-{n}", shard=0, offset=0, length=1, height=9, width=9, classes={i: 5})
        for i in range(1, 41)
        for n in range(2 + 4 * (i % 2))
    ]
    packed = Manifest(name="lvis", classes={i: f"thing {i}" for i in range(1, LVIS_CLASSES + 1)}, samples=samples)
    options = EvalConfig(protocol="gfsam", episodes=30)
    made = plan_evaluation(FoldConfig(scheme="lvis", fold=1, shots=shots), options, ExportHeader(), packed, size=33)
    words = made.statement(packed, ExportHeader())
    assert words["fold"] == (
        "1 of scheme lvis (every 10th from the i-th on of the classes in more than K images; "
        f"at K = {shots} they are {count})"
    )
    assert words["classes"] == "novel: " + ", ".join(f"thing {i}" for i in made.classes)
    assert len(made.classes) == count and words["shots"] == str(shots)
    assert [e.class_id for e in made.episodes] == [made.classes[i % count] for i in range(30)]
