"""The page of a training: verdicts on good and bad runs, a whole and safe page, and pictures that are not empty."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fss.data.view_dataset import ViewDataConfig
from fss.methods.prior.config import PriorConfig
from fss.methods.prior.method import PriorExtractor
from fss.report import curves, feature_figures
from fss.report.page import Page, Picture, Verdict, speed_table, write_page
from fss.report.training_page import report
from fss.report.view_section import verdicts, view_pictures
from fss.tracking.run_dir import resume_command
from shards.read import ShardSet
from tests.support.html_outline import Outline
from tests.support.labelled import rectangles
from tests.support.prior_runs import CHANCE_LEVELS, log_of, run_of, small_prior, task_of
from tests.support.toy import Toy

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("small_figures")


def judged(**log) -> dict[str, bool]:
    return {verdict.text.split()[0].rstrip(":"): verdict.good for verdict in verdicts(log_of(40, **log), CHANCE_LEVELS)}


def test_a_good_run_is_good_and_each_failing_run_is_not():
    good = judged()
    assert good == {"loss/global": True, "top1/global": True, "spread/global": True, "kNN": True}
    assert judged(loss=math.log(64) - 0.9)["loss/global"] is False
    assert judged(top1=19 / 64)["top1/global"] is False
    collapsed = judged(spread=0.02)
    assert not collapsed["spread/global"] and not collapsed["top1/global"]
    assert judged(knn=0.22)["kNN"] is False  # above the 20 % before the first step, but not by two standard errors
    unfilled = judged(fill=0.5)
    assert not unfilled["loss/global"] and not unfilled["top1/global"]


def test_verdicts_of_a_run_that_logged_next_to_nothing():
    assert verdicts([], CHANCE_LEVELS) == []
    assert verdicts([{"step": 0, "knn/top1": 0.3, "knn/chance_level": 0.5, "knn/images": 10.0}], {})[0].good is False


def test_chance_levels_follow_from_the_queues_in_use():
    both = small_prior().chance_levels()
    assert both["loss/global"] == pytest.approx(math.log(64))
    assert both["loss"] == pytest.approx(math.log(64) + math.log(32))
    assert both["top1/local"] == 1 / 32
    assert set(small_prior(local="none").chance_levels()) == {
        "loss",
        "loss/global",
        "top1/global",
    }
    assert Toy().chance_levels() == {}


def test_a_run_far_from_the_recipe_has_a_caveat_and_the_recipe_has_none():
    (text,) = small_prior().caveats(40 * 32)
    assert "1,280 images seen" in text and "K = 63" in text and "M = 31" in text and "ResNet-18" in text
    full = PriorExtractor(PriorConfig())
    assert full.caveats(41_000 * 256) == []
    (text,) = full.caveats(41 * 256)
    assert "images seen" in text and "K = 65536 for" not in text and "ResNet" not in text


def test_speed_leaves_the_warm_up_out():
    rows = [{"step": s, "speed": {"images_per_s": v, "data_wait": 0.5}} for s, v in ((1, 1.0), (2, 100.0), (3, 102.0))]
    images, wait = speed_table(rows)
    assert images["median"] == "101.0" and wait["median"] == "50.0"
    assert images["what"] == "images / s, all ranks"
    assert speed_table(rows, "episodes")[0]["what"] == "episodes / s, all ranks"
    assert speed_table([]) == []


def test_the_command_that_resumes_a_run():
    assert resume_command("launch/x.py --a 1", 2, "cpu") == (
        "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 launch/x.py --a 1"
    )
    assert resume_command("launch/x.py", 1, "cuda") == "accelerate launch --num_processes 1 launch/x.py"


def test_a_page_is_escaped_and_needs_nothing_from_outside(tmp_path):
    page = Page(
        title="<b>x</b>",
        summary={"a & b": "<script>"},
        verdicts=[Verdict(good=True, text="1 < 2")],
        pictures=[Picture(title="P", file="p.png", caption='"quoted"')],
        resume="run --x '<y>'",
    )
    outline = Outline(write_page(tmp_path / "report", page, log_of(5)))
    assert outline.open == [] and outline.links == {"p.png"}
    text = (tmp_path / "report" / "index.html").read_text()
    assert "<script" not in text and "<b>" not in text and "://" not in text
    facts = json.loads((tmp_path / "report" / "report.json").read_text())
    assert facts["last"]["knn/top1"] == 0.5 and facts["speed"][0]["what"].startswith("images / s")
    assert "PASS: 1 < 2" in (tmp_path / "report" / "report.md").read_text()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    return rectangles(tmp_path_factory.mktemp("pretrained") / "set", [1, 2, 3] * 8)


def assert_drawn(folder: Path, names: set[str]) -> None:
    for name in names:
        assert cv2.imread(str(folder / name)).std() > 10, f"{name} is empty"


def test_report_of_a_prior_run_has_all_its_pictures(tmp_path, shards):
    method = small_prior(local="patch")
    run = run_of(tmp_path / "run", method)
    before = torch.get_rng_state()
    page = report(run, method, task_of(shards, method), CPU)
    assert torch.equal(torch.get_rng_state(), before)
    links = Outline(page).links
    assert links == {"curves.png", "neighbours.png", "dense.png", "views.png", "superpixels.png"}
    assert_drawn(page.parent, links)
    text = page.read_text()
    assert "120 (5.0 epochs)" in text and "images seen" in text and "While a queue is filling" in text


@pytest.mark.parametrize(
    ("local", "files", "words"),
    [
        ("patch", {"views.png", "superpixels.png"}, "The square is the slic patch that both patch views show"),
        ("region", {"views.png", "superpixels.png"}, "a colour marks the same superpixel in both views"),
        ("none", {"views.png"}, "in the first epoch."),
    ],
)
def test_the_input_of_the_network_is_drawn_for_every_local_contrast(tmp_path, shards, local, files, words):
    """The only part of the page that depends on the local contrast."""
    data = ViewDataConfig(shards=str(shards.folder), batch=4)
    spec = small_prior(local=local).batch_spec
    before = torch.get_rng_state()
    pictures = list(view_pictures(tmp_path, spec, shards, data, 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert {picture.file for picture in pictures} == {path.name for path in tmp_path.iterdir()} == files
    assert_drawn(tmp_path, files)
    assert words in pictures[0].caption


def test_report_without_labels_and_with_a_broken_sample(tmp_path, shards, monkeypatch):
    read = shards.read
    monkeypatch.setattr(shards, "read", lambda index: {"json": b"{}"} if index == 0 else read(index))
    method = small_prior()
    task = task_of(shards, method)
    task.shards, task.crops = shards, None
    page = report(run_of(tmp_path / "run", method), method, task, CPU)
    assert "neighbours.png" not in Outline(page).links


@pytest.mark.parametrize(
    "rows",
    [
        [],
        log_of(1),
        log_of(500),
        [{"step": 3, "lr": 0.1}],
        [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}],
    ],
)
def test_curves_of_many_few_and_odd_rows(tmp_path, rows):
    curves.curves(rows, tmp_path / "curves.png", baselines=CHANCE_LEVELS, filling=10)
    assert cv2.imread(str(tmp_path / "curves.png")) is not None


def test_series_reads_nested_speed_and_passes_over_rows_without_the_metric():
    steps, values = curves.series([{"step": 1, "a": 2}, {"step": 2}, {"step": 3, "speed": {"b": 5.0}}], "speed/b")
    assert steps.tolist() == [3] and values.tolist() == [5]


def test_principal_colours_are_equal_where_features_are_and_do_not_show_the_place():
    torch.manual_seed(0)
    vectors = torch.randn(2, 16, 1, 1)
    kind = torch.randint(0, 2, (4, 5, 5))
    place = 10 * torch.randn(1, 16, 5, 5)  # what padding does: the same in every image
    plain = feature_figures.principal_colours(vectors[kind][..., 0, 0].permute(0, 3, 1, 2))
    assert plain.shape == (4, 3, 5, 5) and plain.min() >= 0 and plain.max() <= 1
    # the first component, up to ties of rank, tells the two kinds of cell apart wherever both kinds occur at a place
    mixed = (kind.float().mean(0) == 0.5).expand(4, -1, -1)
    first = plain[:, 0]
    assert mixed.any()
    kinds = [first[mixed & (kind == k)] for k in (0, 1)]
    assert kinds[0].max() < kinds[1].min() or kinds[1].max() < kinds[0].min()
    marked = feature_figures.principal_colours(place + 1e-3 * vectors[kind][..., 0, 0].permute(0, 3, 1, 2))
    assert np.corrcoef(marked[0, 0].flatten(), marked[1, 0].flatten())[0, 1] < 0.9


def test_queries_of_neighbours_are_one_of_each_class(tmp_path):
    asked = []

    def image(index: int) -> np.ndarray:
        asked.append(index)
        return np.full((8, 8, 3), index, np.uint8)

    names = ["b", "a", "b", "a", "c"]
    features = torch.eye(5)
    features[2] = features[0]
    feature_figures.neighbours(image, names, features, tmp_path / "n.png", queries=6, k=1)
    assert asked[::2] == [1, 0, 4]  # a, b, c
    assert asked[3] == 2  # the nearest of crop 0 is its twin, not itself
