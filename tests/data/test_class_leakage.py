"""The classes that a base learner has learned are those that training may use, and none is novel."""

from types import SimpleNamespace

import pytest

from fss.data.class_leakage import check_novel_unseen, check_training_classes
from fss.data.dataset import DataConfig
from fss.data.folds import Fold
from fss.distributed.runtime import RuntimeConfig
from fss.errors import ConfigError
from fss.evaluate.plan import EvalConfig, FoldConfig
from fss.jobs.evaluate import evaluate
from fss.jobs.recall import recall
from fss.methods import METHODS
from tests.support.episode_toy import Colour, ColourConfig
from tests.support.labelled import rectangles

NAMES = {1: "red", 2: "green", 3: "blue", 4: "yellow"}
FOLD = Fold("interleaved", 0, novel=(1,), base=(2, 3, 4))


def test_nothing_or_just_the_training_classes_is_accepted():
    check_training_classes({}, (2, 4), NAMES)
    check_training_classes({4: "yellow", 2: "green"}, (2, 4), NAMES)


@pytest.mark.parametrize(
    ("seen_classes", "message"),
    [
        ({2: "green", 3: "blue", 4: "yellow"}, r"also blue \(3\): give"),
        ({2: "green"}, r"not yellow \(4\): give"),
        ({1: "red", 2: "green"}, r"also red \(1\) and not yellow \(4\): give"),
        ({2: "green", 4: "amber"}, r"also amber \(4\) and not yellow \(4\): give"),
    ],
)
def test_other_classes_are_named(seen_classes, message):
    with pytest.raises(ConfigError, match=message):
        check_training_classes(seen_classes, (2, 4), NAMES)


@pytest.mark.parametrize(
    ("seen_classes", "known"),
    [
        ({}, None),
        ({2: "green", 4: "yellow"}, None),
        ({1: "red", 2: "green"}, "red (1)"),
        ({71: "red", 72: "violet"}, "red (1)"),  # of another set
        ({1: "violet", 2: "brown"}, None),  # of another set that numbers its classes otherwise
        ({1: "crimson", 2: "green"}, "red (1)"),  # of the same set under another name
    ],
)
def test_a_novel_class_that_was_learned_is_refused(seen_classes, known):
    if known is None:
        check_novel_unseen(seen_classes, FOLD, NAMES)
        return
    with pytest.raises(ConfigError) as refused:
        check_novel_unseen(seen_classes, FOLD, NAMES)
    assert known in str(refused.value)


class Taught(Colour):
    """A method that has seen a class before."""

    def seen_classes(self) -> dict[int, str]:
        return {2: "green"}


@pytest.mark.parametrize("command", [lambda job: evaluate(job, ""), recall], ids=["evaluate", "recall"])
def test_every_measurement_of_novel_classes_asks(command, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "colour", Taught)
    job = SimpleNamespace(
        run=RuntimeConfig(dir=str(tmp_path / "run"), device="cpu", threads=1),
        out=str(tmp_path / "out"),
        data=DataConfig(shards=str(rectangles(tmp_path / "set", [2, 2, 3, 4]).folder)),
        episodes=FoldConfig(scheme="list", novel=["green"]),
        eval=EvalConfig(min_area=1),
        method=ColourConfig(),
        weights=None,
    )
    with pytest.raises(ConfigError, match=r"learned green \(2\), novel in fold 0"):
        command(job)
