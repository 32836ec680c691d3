"""launch/predict.py: what is written, and what is refused in a sentence."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from fss.inference.segmenter import Segmenter
from fss.methods.base import Prediction
from fss.methods.gfsam import GFSAM
from launch.predict import main
from tests.support.scenes import GREEN, HEIGHT, LEFT, RED, RIGHT, WIDTH, marked, saved, scene
from tests.support.tiny_gfsam import GRID, SIZE, STAND_INS


@pytest.fixture
def shots(tmp_path) -> list[str]:
    """Two supports of red and one of green, as options."""
    words = []
    for stem, name, place, colour in (("a", "red", LEFT, RED), ("b", "red", RIGHT, RED), ("c", "green", LEFT, GREEN)):
        photograph = saved(tmp_path / "shots" / f"{stem}.jpg", scene((place, colour)), quality=95)
        mask = saved(tmp_path / "shots" / f"{stem}.png", marked(place))
        words += ["--support", photograph, "--mask", mask, "--name", name]
    return words


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of two queries of unlike sizes, and something that is none."""
    saved(tmp_path / "photos" / "first.jpg", scene((LEFT, GREEN), (RIGHT, RED)), quality=95)
    saved(tmp_path / "photos" / "second.png", scene((LEFT, RED))[:40])
    (tmp_path / "photos" / "readme.txt").write_text("none")
    return tmp_path / "photos"


def run(*words: object) -> int:
    """GF-SAM over stand-ins, by the command."""
    tiny = ["--method", "gfsam", "--method.sam", "vit_t", "--method.size", str(SIZE), "--device", "cpu"]
    with mock.patch.multiple("fss.methods.gfsam", **STAND_INS):
        return main([*tiny, "--method.dino_size", str(14 * GRID), *map(str, words)])


def test_what_is_written(shots, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*shots, "--query", photos, "--out", out) == 0
    assert str(out) in capsys.readouterr().out
    names = {"labels.txt", "sheet.png", "first.png", "first_overlay.jpg", "second.png", "second_overlay.jpg"}
    assert {path.name for path in out.iterdir()} == names
    assert (out / "labels.txt").read_text() == "1 red\n2 green\n"
    with Image.open(out / "first.png") as first:
        assert first.mode == "P" and first.size == (WIDTH, HEIGHT)
        labels = np.array(first)  # the indices
        assert len({first.getpalette()[3 * i] for i in range(3)}) > 1
    assert labels[32, 40] == 1 and labels[16, 8] == 2 and labels[2, 62] == 0
    with Image.open(out / "second.png") as second:
        assert second.size == (WIDTH, 40) and set(np.unique(np.array(second))) == {0, 1}
    with Image.open(out / "first_overlay.jpg") as overlay:
        assert overlay.size == (WIDTH, HEIGHT)
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > sheet.height  # two lines of landscapes


def test_without_names_all_are_one_class(shots, photos, tmp_path):
    plain = [word for i, word in enumerate(shots) if i % 6 < 4]
    assert run(*plain, "--query", photos / "second.png", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "labels.txt").read_text() == "1 object\n"


def test_a_damaged_query_stops_none_of_the_others(shots, photos, tmp_path, capsys):
    (photos / "damaged.jpg").write_bytes((photos / "first.jpg").read_bytes()[:300])
    assert run(*shots, "--query", photos, "--out", tmp_path / "out") != 0
    assert "1 of 3 queries were left out: " in capsys.readouterr().err
    assert (tmp_path / "out" / "sheet.png").exists() and (tmp_path / "out" / "second.png").exists()
    assert not (tmp_path / "out" / "damaged.png").exists()


def test_a_query_whose_logits_are_not_finite_stops_none_of_the_others(shots, photos, tmp_path, capsys, monkeypatch):
    predict = Segmenter.segment

    def segment(self, query, supports):
        if query.stem == "first":
            with mock.patch.object(
                GFSAM, "predict", return_value=Prediction(logits=torch.full((1, 2, 64, 64), np.nan))
            ):
                return predict(self, query, supports)
        return predict(self, query, supports)

    monkeypatch.setattr(Segmenter, "segment", segment)
    assert run(*shots, "--query", photos, "--out", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "1 of 2 queries were left out: " in message and "first.jpg cannot be segmented" in message
    assert (tmp_path / "out" / "second.png").exists() and not (tmp_path / "out" / "first.png").exists()


def test_pictures_are_never_written_over(shots, photos, tmp_path, capsys):
    before = (photos / "second.png").read_bytes()
    for out in (photos, tmp_path / "photos" / ".." / "shots"):
        assert run(*shots, "--query", photos, "--out", out) != 0
        assert "where label maps are written: give another folder" in capsys.readouterr().err
    assert (photos / "second.png").read_bytes() == before and not (photos / "labels.txt").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda shots, photos: ["--query", photos], "no --support is given"),
        (lambda shots, photos: shots, "no --query is given"),
        (lambda shots, photos: [*shots[:-2], "--query", photos], "3 --support but 2 --name are given"),
        (lambda shots, photos: [*shots, "--mask", "x.png", "--query", photos], "3 --support but 4 --mask are given"),
        (lambda shots, photos: [*shots, "--query", photos / "none.jpg"], "none.jpg cannot be read as a picture"),
        (lambda shots, photos: [*shots, "--query", photos, "--query", photos], "two queries are called first"),
        (lambda shots, photos: [*shots, "--query", photos, "--size", "500"], "size is 500: give a multiple of 16"),
        (lambda shots, photos: [*shots, "--query", photos.parent / "sheet.jpg"], "a query is called sheet"),
    ],
)
def test_commands_that_are_refused(change, words, shots, photos, tmp_path, capsys):
    assert run(*change(shots, photos), "--out", tmp_path / "out") != 0
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message


def test_a_wrong_size_is_refused_before_weights_are_read(shots, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fss.inference.segmenter.load_for_evaluation", lambda job: pytest.fail("the weights were read"))
    assert run(*shots, "--query", photos, "--size", "500", "--out", tmp_path / "out") != 0
    assert "size is 500: give a multiple of 16" in capsys.readouterr().err


def test_a_folder_without_a_picture(shots, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(*shots, "--query", tmp_path / "empty", "--out", tmp_path / "out") != 0
    assert "empty holds no picture (.jpg, .jpeg, .png): give a folder that does" in capsys.readouterr().err
