"""Examples of a validation as one figure, and as rows of a table."""

from collections.abc import Sequence
from pathlib import Path

from fss.evaluate.examples import EpisodeExample
from fss.report import episode_figures, label_map_figures
from fss.tracking.tracker import Row
from fss.train.validation.label_validation import LabelExample

Example = EpisodeExample | LabelExample


def draw_examples(examples: Sequence[Example], path: Path) -> list[Row]:
    """Draw examples, all of one kind, as a PNG at `path`. Returns one row of a table for each example."""
    path.parent.mkdir(exist_ok=True)
    if episodes := [example for example in examples if isinstance(example, EpisodeExample)]:
        episode_figures.draw(episodes, path)
        return [episode_figures.row(example) for example in episodes]
    labelled = [example for example in examples if isinstance(example, LabelExample)]
    label_map_figures.draw(labelled, path)
    return [label_map_figures.row(example) for example in labelled]
