"""What a base learner has learned must be what training may learn from, and nothing that is novel."""

import pytest

from fss.data.folds import Fold
from fss.engine.learnt import check_test, check_training
from fss.errors import ConfigError

NAMES = {1: "red", 2: "green", 3: "blue", 4: "yellow"}
FOLD = Fold("interleaved", 0, novel=(1,), base=(2, 3, 4))


def test_nothing_or_just_the_training_classes_is_accepted():
    check_training({}, (2, 4), NAMES)
    check_training({4: "yellow", 2: "green"}, (2, 4), NAMES)


@pytest.mark.parametrize(
    ("learnt", "said"),
    [
        ({2: "green", 3: "blue", 4: "yellow"}, r"also blue \(3\): give"),
        ({2: "green"}, r"not yellow \(4\): give"),
        ({1: "red", 2: "green"}, r"also red \(1\) and not yellow \(4\): give"),
        ({2: "green", 4: "amber"}, r"also amber \(4\) and not yellow \(4\): give"),
    ],
)
def test_other_classes_are_named(learnt, said):
    with pytest.raises(ConfigError, match=said):
        check_training(learnt, (2, 4), NAMES)


@pytest.mark.parametrize(
    ("learnt", "known"),
    [
        ({}, None),
        ({2: "green", 4: "yellow"}, None),
        ({1: "red", 2: "green"}, "red (1)"),
        ({71: "red", 72: "violet"}, "red (1)"),    # of another set
        ({1: "violet", 2: "brown"}, None),    # of another set that numbers its classes otherwise
        ({1: "crimson", 2: "green"}, "red (1)"),    # of the same set under another name
    ],
)
def test_a_novel_class_that_was_learned_is_refused(learnt, known):
    if known is None:
        check_test(learnt, FOLD, NAMES)
        return
    with pytest.raises(ConfigError) as refused:
        check_test(learnt, FOLD, NAMES)
    assert known in str(refused.value)
