"""Checks that classes seen by a pretrained part of a method fit the fold that the method is trained and tested on."""

from collections.abc import Mapping, Sequence

from fss.data.folds import Fold
from fss.errors import ConfigError

Classes = Mapping[int, str]


def check_training_classes(seen_classes: Classes, classes: Sequence[int], names: Classes) -> None:
    """Raise ConfigError unless `seen_classes` is empty or equal to `classes`, the ids that training may use.

    An additional class would be an object to leave out in training and the object to find in validation or test. A
    missing class would never be left out.
    """
    expected = {class_id: names[class_id] for class_id in classes}
    if not seen_classes or seen_classes == expected:
        return
    more, less = (
        [f"{name} ({class_id})" for class_id, name in one.items() if other.get(class_id) != name]
        for one, other in ((seen_classes, expected), (expected, seen_classes))
    )
    raise ConfigError(
        "method.base_weights has learned other classes than this training may learn from: "
        + " and ".join([f"also {_some(more)}"] * bool(more) + [f"not {_some(less)}"] * bool(less))
        + ": give a base learner trained with the same episodes.scheme, episodes.fold, validate.split and "
        "validate.classes"
    )


def check_novel_unseen(seen_classes: Classes, fold: Fold, names: Classes) -> None:
    """Raise ConfigError if a seen class is novel in `fold`: its score would be that of a known class, or it is hidden.

    Classes are compared by name, and also by id if both sets give one class the same id and name.
    """
    same_ids = any(names.get(class_id) == name for class_id, name in seen_classes.items())
    known = [
        f"{names[class_id]} ({class_id})"
        for class_id in fold.novel
        if names[class_id] in seen_classes.values() or (same_ids and class_id in seen_classes)
    ]
    if known:
        raise ConfigError(
            f"the base learner inside these weights has learned {_some(known)}, novel in fold {fold.fold} of scheme "
            f"{fold.scheme}: evaluate on the fold that the weights were trained for"
        )


def _some(classes: Sequence[str], most: int = 3) -> str:
    return ", ".join(classes[:most]) + (f" and {len(classes) - most} more" if len(classes) > most else "")
