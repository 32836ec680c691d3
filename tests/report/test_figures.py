"""Figures at full size: colours of pixels, and sizes that fit a page."""

import cv2
import numpy as np
import pytest

from fss.evaluate.examples import EpisodeExample
from fss.report import episode_figures, paint
from fss.report.class_charts import Bar, class_bars


def test_colours_say_hit_miss_and_false_alarm(tmp_path):
    grey = np.full((200, 300, 3), 120, np.uint8)
    truth, prediction = np.zeros((200, 300), np.uint8), np.zeros((200, 300), np.uint8)
    truth[:100], prediction[:, :100] = 1, 1  # a quarter and more of each kind
    truth[150:] = 255
    episode_figures.draw(
        [
            EpisodeExample(
                name="n", score="s", supports=[(grey, truth)] * 3, query=grey, truth=truth, prediction=prediction
            ),
            EpisodeExample(
                name="n",
                score="s",
                supports=[(grey[:, :90], truth[:, :90])],
                query=grey.transpose(1, 0, 2),
                truth=truth.T,
                prediction=prediction.T,
                maps={"m": np.eye(4)},
            ),
        ],
        tmp_path / "e.png",
    )
    picture = cv2.imread(str(tmp_path / "e.png"))[..., ::-1].astype(int)
    areas = {}
    for name in ("HIT", "MISS", "FALSE_ALARM", "UNCOUNTED"):
        colour = np.array([int(getattr(episode_figures, name)[i : i + 2], 16) for i in (1, 3, 5)])
        blend = (1 - paint.TINT) * 120 + paint.TINT * colour
        areas[name] = np.count_nonzero(np.abs(picture - blend).max(2) < 6)
    # MISS: 100 x 200 px. FALSE_ALARM: 50 x 100 px. HIT: 100 x 100 px, and 100 x 300 px of the truth's picture.
    assert areas["MISS"] > 3 * areas["FALSE_ALARM"] > 0 and areas["HIT"] > 1.5 * areas["MISS"] and areas["UNCOUNTED"]


@pytest.mark.parametrize("classes, seeds", [(1, 1), (5, 5), (20, 3), (240, 2)])
def test_bars_of_few_and_many_classes_fit_a_page(tmp_path, classes, seeds):
    rng = np.random.default_rng(0)
    bars = [
        Bar(name=f"class {i}" * (1 + i % 3), values=tuple(rng.uniform(0, 100, seeds)), episodes=i)
        for i in range(classes)
    ]
    class_bars(bars, tmp_path / "bars.png", mean=50)
    height, width = cv2.imread(str(tmp_path / "bars.png")).shape[:2]
    assert height < 2000 and width < 2500 and height > 100
