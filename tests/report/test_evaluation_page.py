"""The page of an evaluation: scores, caveats, the choice of episodes, and pictures that match the scores."""

import json
import re
from dataclasses import replace

import cv2
import pytest

from fss.data.episodes import Episode
from fss.data.folds import Fold
from fss.evaluate.examples import predict_example
from fss.evaluate.plan import EvaluationPlan
from fss.evaluate.record import EpisodeResult
from fss.evaluate.summary import summarize
from fss.nn.exports import ExportHeader
from fss.report.evaluation_page import caveats, cell_of, choose, headline, report
from fss.report.page import Page, write_page
from fss.report.published import Cell
from fss.report.tables import Table, markdown_table, on_console
from shards.read import ShardSet
from tests.support.evaluated import Near, measured, opened, planned, predictor_of
from tests.support.html_outline import Outline
from tests.support.labelled import HEIGHT, WIDTH, rectangles

pytestmark = pytest.mark.usefixtures("small_figures")

QGNET = Cell(method="qgnet", scheme="pascal", fold=0, shots=1, backbone="resnet50", size=473)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    return rectangles(tmp_path_factory.mktemp("reported") / "set", [1, 2, 3, 4] * 6)


@pytest.fixture(scope="module", params=[1, 5], ids=["1-shot", "5-shot"])
def evaluation(request, shards) -> tuple[EvaluationPlan, list[EpisodeResult]]:
    """A plan and its results."""
    what = planned(shards, request.param)
    return what, measured(shards, what)


def test_the_page_is_whole_and_describes_the_protocol(tmp_path, shards, evaluation):
    what, results = evaluation
    shots = what.shots
    page = report(opened(tmp_path / "run"), predictor_of(what), shards, results, what, ExportHeader())
    outline = Outline(page)
    assert outline.open == [] and outline.links == {"classes.png", "best.png", "median.png", "worst.png"}
    assert all(cv2.imread(str(page.parent / name)).std() > 10 for name in outline.links)
    text = page.read_text()
    assert "://" not in text
    for words in what.statement(shards.manifest, ExportHeader()).values():
        assert words.replace("'", "&#x27;") in text
    assert f"colour, {shots}-shot, on rectangles, list fold 0" in text and "0 episodes are few." in text
    facts = json.loads((page.parent / "report.json").read_text())
    found = summarize(results, what.classes, shards.manifest.classes)
    assert facts["figures"]["miou"] == found["miou"] and facts["figures"]["cell"]["shots"] == shots
    assert "| seed 1 |" in (page.parent / "report.md").read_text()


def test_the_headline_is_the_mean_over_classes_of_summed_counts(shards, evaluation):
    what, results = evaluation
    per_seed = []
    for seed in (0, 1):
        ious = []
        for class_id in (2, 3):
            inter = union = 0
            for result in results:
                if result.seed == seed and result.class_id == class_id:
                    inter += result.counts[1][0]
                    union += result.counts[1][1]
            ious.append(100 * inter / union)
        per_seed.append(sum(ious) / 2)
    table = headline(summarize(results, what.classes, shards.manifest.classes), results, None)
    assert [row[1] for row in table.rows[:2]] == [f"{value:.2f}" for value in per_seed]
    mean, deviation = sum(per_seed) / 2, abs(per_seed[0] - per_seed[1]) / 2**0.5
    assert table.rows[2][1] == f"{mean:.2f} ± {deviation:.2f}" and [row[3] for row in table.rows] == ["10", "10", "20"]


def result(
    number: int = 0, class_id: int = 1, iou: tuple[int, int] = (1, 2), query: str = "", seed: int = 0
) -> EpisodeResult:
    return EpisodeResult(seed, number, class_id, query or f"q{number}", ("s",), ((5, 9), iou))


@pytest.mark.parametrize(
    "cell, rows, note",
    [
        (QGNET, [("published: QGNet, Table I, QGNet, Table II", "63.4", "72.2", "")], "Of FB-IoU the paper prints"),
        (replace(QGNET, backbone="resnet18"), [], "no published number for this cell: qgnet, resnet18, 473 px, 1-shot"),
        (replace(QGNET, scheme="coco", size=321), [("published: QGNet, Table III", "34.4", "\u2014", "")], "Per cent."),
        (None, [], "Not the classes of a published score"),
    ],
)
def test_the_papers_figure_stands_below_or_its_absence_is_reported(cell, rows, note):
    results = [result()]
    table = headline(summarize(results, (1,), {1: "a"}), results, cell)
    assert table.rows[0] == ("seed 0", "50.00", "52.78", "1") and table.rows[1:] == rows and note in table.note


def test_cells_follow_from_the_method_and_the_fold(shards):
    assert cell_of(Near(), planned(shards, 5)) == Cell(method="colour", scheme="list", fold=0, shots=5, size=33)


def test_caveats_name_the_limits_of_a_score(shards):
    what, names = planned(shards), shards.manifest
    both = [result(class_id=2), result(class_id=3)]

    def found(what=what, results=both, **header) -> str:
        return " ".join(caveats(Near(), names, results, what, ExportHeader(**header)))

    assert found() == "0 episodes are few."
    assert "12 episodes are few." in found(episodes_seen=12)
    assert "upper bound, not a test" in found(selected_on="novel") and "upper bound" not in found(selected_on="base")
    assert "No episode asked for blue: such a class counts as 0" in found(results=both[:1])
    trained = {"data": names.name, "held_out": [1]}
    assert "have learned blue: this is no test" in found(novel=[2], **trained)
    assert found(novel=[2, 3], **trained) == found(novel=[2], **{**trained, "data": "other"}) == found()
    of_base = replace(what, split="base", classes=(1, 4))
    assert "base classes of the fold" in found(of_base, [result(), result(class_id=4)])


def test_a_set_that_is_not_the_published_test_set_is_a_caveat(shards):
    what = replace(planned(shards), fold=Fold("fss", 0, (2, 3), (1, 4)))
    (text,) = caveats(Near(), shards.manifest, [result(class_id=2), result(class_id=3)], what, ExportHeader())[1:]
    assert "shows the novel classes 12 times, the published test set 2,400 times" in text


def test_shown_episodes_are_of_different_classes_and_queries():
    results = [
        result(0, 1, (9, 10)),
        result(1, 1, (8, 10)),
        result(2, 2, (5, 10)),
        result(3, 2, (4, 10), query="q2"),
        result(4, 3, (1, 10)),
        result(5, 1, (7, 10)),
    ]
    assert [r.number for r in choose(results, lambda r: -r.iou, 3)] == [0, 2, 4]
    assert [r.number for r in choose(results, lambda r: -r.iou, 9)] == [0, 2, 4, 1, 5]  # query q2 once
    assert [r.number for r in choose(results, lambda r: r.iou, 2)] == [4, 3]
    ties = [result(0, 1, (0, 5)), result(1, 1, (0, 50))]
    assert choose(ties, lambda r: r.iou, 1) == [ties[1]]
    assert choose([], lambda r: r.iou, 4) == []


def test_few_episodes_are_each_shown_once(tmp_path, shards):
    what = planned(shards, episodes=2, seeds=[0])
    page = report(opened(tmp_path / "run"), predictor_of(what), shards, measured(shards, what), what, ExportHeader())
    captions = re.findall(r"Queries: (.*?)\.<", page.read_text())
    assert len(captions) == 2 and len(set(captions)) == 2


@pytest.mark.parametrize("options", [{}, {"resolution": 40, "resize": "squash"}, {"resize": "compat"}])
def test_a_picture_shows_what_was_scored(shards, options):
    what = planned(shards, 2, **options)
    predictor = predictor_of(what)
    for episode, scored in zip(what.episodes, measured(shards, what), strict=True):
        example = predict_example(predictor, shards, episode, what.scoring)
        assert example.score == f"IoU {100 * scored.iou:.1f} %"
        assert example.prediction.shape == example.truth.shape == (HEIGHT, WIDTH) and len(example.supports) == 2


def test_the_score_under_a_picture_treats_ignored_pixels_as_the_protocol_does(tmp_path):
    shards = rectangles(tmp_path / "set", [1, 2, 3, 4] * 3, ignored=True)
    scores = {}
    for ignored in (True, False):
        what = planned(shards, episodes=3, ignore_255=ignored)
        examples = [predict_example(predictor_of(what), shards, episode, what.scoring) for episode in what.episodes]
        scores[ignored] = [example.score for example in examples]
        assert scores[ignored] == [f"IoU {100 * scored.iou:.1f} %" for scored in measured(shards, what)]
    assert all(counted != not_counted for counted, not_counted in zip(scores[False], scores[True], strict=True))


def test_maps_lie_over_the_image_and_not_over_its_padding(shards):
    episode = Episode(0, 0, 2, shards.find("r0001"), (shards.find("r0005"),))
    what = planned(shards)
    example = predict_example(predictor_of(what), shards, episode, what.scoring)
    near = cv2.resize(example.maps["near"], (WIDTH, HEIGHT))
    inside = example.truth == 1
    assert example.maps["near"].shape == (25, 33)  # 48 x 64 in 33 x 33
    assert near[inside].mean() > near[~inside].mean() + 0.2


def test_tables_are_escaped_aligned_and_folded(tmp_path):
    table = Table(
        title="<T>",
        header=("a", "b|c", "d"),
        rows=[("r", "1.5", "a|b"), ("s", "\N{EM DASH}", "<x>")],
        note="n & m",
        folded=True,
    )
    facts = Table(title="F", header=(), rows=[("label", "<value>")])
    page = write_page(tmp_path, Page(title="p", summary={}, tables=[table, facts]))
    text = page.read_text()
    assert Outline(page).open == []
    assert "<summary>&lt;T&gt;</summary>" in text and "<dt>label</dt><dd>&lt;value&gt;</dd>" in text
    assert "<td>1.5</td><td class=words>a|b</td>" in text and "<td>\N{EM DASH}</td>" in text  # figures to the right
    assert "n &amp; m" in text and "Speed" not in text and "Resume" not in text
    assert "| r | 1.5 | a\\|b |" in markdown_table(table)
    assert [column.header for column in on_console(table).columns] == ["a", "b|c", "d"]
