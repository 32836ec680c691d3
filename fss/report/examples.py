"""Examples of a validation as one figure, and as rows of a table."""

from collections.abc import Sequence
from pathlib import Path

from fss.evaluate.examples import EpisodeExample
from fss.report import episode_figures, label_map_figures
from fss.tracking.tracker import Row
from fss.train.validation.label_validation import LabelExample

Example = EpisodeExample | LabelExample


def draw_examples(examples: Sequence[Example], path: Path) -> list[Row]:
    """Draw examples, all of one kind, as a PNG at `path`. Returns one row of a table an example."""
    path.parent.mkdir(exist_ok=True)
    if episodes := [one for one in examples if isinstance(one, EpisodeExample)]:
        episode_figures.episodes(episodes, path)
        return [episode_figures.row(one) for one in episodes]
    labelled = [one for one in examples if isinstance(one, LabelExample)]
    label_map_figures.draw(labelled, path)
    return [label_map_figures.row(one) for one in labelled]
