"""Own pictures: what is read of them, what is found, what is written, and what is refused in a sentence."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import fss
from fss.engine.own_pictures import read_mask, read_photograph
from fss.engine.predict import Segmenter
from fss.errors import UserError
from fss.methods.gfsam import GFSAM
from launch.predict import main
from tests.engine.episode_toy import Colour
from tests.methods.tiny_gfsam import GRID, SIZE, STAND_INS

RED, GREEN, BLUE = (255, 20, 0), (0, 230, 30), (10, 0, 200)
HEIGHT, WIDTH = 48, 64
LEFT, RIGHT = np.s_[0:32, 0:16], np.s_[16:48, 32:48]    # where objects lie: whole patches of the tiny GF-SAM


def scene(*objects: tuple[tuple[slice, slice], tuple[int, int, int]], ground=BLUE) -> np.ndarray:
    """A photograph of objects (place, colour) on blue, uint8 [H, W, 3]."""
    image = np.full((HEIGHT, WIDTH, 3), ground, np.uint8)
    for place, colour in objects:
        image[place] = colour
    return image


def marked(place: tuple[slice, slice], value: int = 255) -> np.ndarray:
    """uint8 [H, W]."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[place] = value
    return mask


def saved(path: Path, picture: np.ndarray, **options) -> str:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(path, **options)
    return str(path)


def alike(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Up to the edges: the toy sees 33 pixels a side."""
    return (found & wanted).sum() / (found | wanted).sum() > 0.75


def test_several_supports_and_several_classes():
    """Every shot counts, and a pixel belongs to the class that it fits best."""
    segmenter = Segmenter(Colour(), device="cpu")
    one = [(scene((LEFT, RED)), marked(LEFT))]
    query = scene((LEFT, GREEN), (RIGHT, RED))
    alone = segmenter.predict(query, one)
    assert alone.classes == ("object",) and alike(alone.mask(), marked(RIGHT) > 0)
    both = segmenter.predict(query, {"red": one * 2, "green": [(scene((RIGHT, GREEN)), marked(RIGHT))]})
    assert both.classes == ("red", "green") and both.labels.dtype == np.uint8
    assert alike(both.mask("red"), marked(RIGHT) > 0) and alike(both.mask("green"), marked(LEFT) > 0)
    assert np.array_equal(both.image, query)
    strange = scene((LEFT, GREEN)), marked(LEFT)    # a shot of another colour moves the mean of the shots
    assert not np.array_equal(segmenter.predict(query, [*one, strange]).labels, alone.labels)


def test_how_sure_it_is(monkeypatch):
    """The mean probability of what was found; of nothing there is none, nor by a method whose logits are none."""
    segmenter = Segmenter(Colour(), device="cpu")
    supports = [(scene((LEFT, RED)), marked(LEFT))]
    plain = segmenter.predict(scene((RIGHT, RED)), supports)
    faint = segmenter.predict(scene((RIGHT, (150, 10, 100))), supports)
    assert 0.5 < faint.sure < plain.sure <= 1
    assert segmenter.predict(scene(), supports).sure is None
    monkeypatch.setattr(Colour, "probable", GFSAM.probable)
    likeness = segmenter.predict(scene((RIGHT, RED)), supports)
    assert likeness.mask().any() and likeness.sure is None


def rgba(mask: np.ndarray) -> np.ndarray:
    """White everywhere, the mask is in the alpha channel."""
    return np.dstack([np.full((*mask.shape, 3), 255, np.uint8), mask])


def index(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask)
    image.putpalette(list(range(256)) * 3)
    return image


@pytest.mark.parametrize(
    "picture",
    [
        marked(LEFT), marked(LEFT, 1), index(marked(LEFT, 3)), marked(LEFT, 200).astype(np.uint16),
        np.dstack([marked(LEFT), marked(()) * 0, marked(()) * 0]), rgba(marked(LEFT)), marked(LEFT) > 0,
    ],
    ids=["0/255", "0/1", "index", "16 bits", "colour", "alpha", "1 bit"],
)    # fmt: skip
def test_masks_of_every_kind(picture, tmp_path):
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), marked(LEFT, 1))


@pytest.mark.parametrize("kind", [index, Image.fromarray])
def test_255_beside_classes_is_unknown(kind, tmp_path):
    """As PASCAL VOC's label maps have it, with a palette and as grey."""
    labels = marked(LEFT, 12)
    labels[RIGHT] = 255
    kind(labels).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), marked(LEFT, 1) + marked(RIGHT, 255))


def test_soft_edges_and_jpeg_spots_are_no_classes(tmp_path):
    soft = marked(LEFT)
    soft[:32, 15], soft[:32, 16] = 140, 90
    saved(tmp_path / "soft.png", soft)
    assert np.array_equal(read_mask(tmp_path / "soft.png"), marked(LEFT, 1))
    assert np.array_equal(read_mask(soft), marked(LEFT, 1))
    saved(tmp_path / "spots.jpg", np.dstack([marked(LEFT)] * 3), quality=60)
    assert alike(read_mask(tmp_path / "spots.jpg") > 0, marked(LEFT) > 0)


def test_photographs_of_every_kind(tmp_path):
    image = scene((LEFT, RED))
    grey = image[..., 0]
    wanted = np.dstack([grey] * 3)
    assert np.array_equal(read_photograph(saved(tmp_path / "grey.png", grey)), wanted)
    deep = saved(tmp_path / "deep.png", grey.astype(np.uint16) * 257)
    assert np.array_equal(read_photograph(deep), wanted)
    clear = np.dstack([image, marked(LEFT)])
    assert np.array_equal(read_photograph(saved(tmp_path / "alpha.png", clear)), image)


def test_a_turned_photograph_goes_with_a_mask_of_what_people_see(tmp_path):
    image, exif = scene((LEFT, RED)), Image.Exif()
    exif[0x0112] = 6    # to be turned by a quarter
    turned = saved(tmp_path / "turned.png", np.rot90(image), exif=exif)
    assert np.array_equal(read_photograph(turned), image)
    segmenter = Segmenter(Colour(), device="cpu")
    assert alike(segmenter.predict(turned, [(turned, marked(LEFT))]).mask(), marked(LEFT) > 0)
    with pytest.raises(UserError, match=r"has 48 x 64 pixels but .*turned.png has 64 x 48: give a mask of"):
        segmenter.learn([(turned, np.rot90(marked(LEFT)))])


@pytest.mark.parametrize(
    ("photograph", "mask", "words"),
    [
        (scene(), marked(LEFT) * 0, "mask of the array marks no pixel"),
        (scene(), marked(LEFT)[:-1], "mask of the array has 64 x 47 pixels but of the array has 64 x 48"),
        (scene() / 255, marked(LEFT), "a photograph is an array float64"),
        (scene()[..., 0], marked(LEFT), r"a photograph is an array uint8 \[48, 64\]"),
        (scene(), scene(), r"a mask is an array uint8 \[48, 64, 3\]"),
        (scene(), marked(LEFT) / 255, "a mask is an array float64"),
        ("no.jpg", marked(LEFT), "no.jpg cannot be read as a picture"),
        (__file__, marked(LEFT), "test_predict.py cannot be read as a picture"),
    ],
)
def test_supports_that_are_refused(photograph, mask, words):
    with pytest.raises(UserError, match=words):
        Segmenter(Colour(), device="cpu").learn([(photograph, mask)])


def test_no_supports_and_too_many_classes():
    segmenter = Segmenter(Colour(), device="cpu")
    for none in ([], {}, {"cat": []}):
        with pytest.raises(UserError, match="supports are empty"):
            segmenter.learn(none)
    with pytest.raises(UserError, match="supports are of 255 classes: give at most 254"):
        segmenter.learn({str(i): [(scene(), marked(LEFT))] for i in range(255)})


def test_loading():
    with mock.patch.multiple("fss.methods.gfsam", **STAND_INS):
        segmenter = fss.load(method="gfsam", sam="vit_t", size=SIZE, dino_size=14 * GRID, device="cpu")
    assert segmenter.size == SIZE and segmenter.method.config.majority


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "sam"}, "method is 'sam': give one of prior, "),
        ({"method": "qgnet"}, "qgnet learns but no weights are given"),
        ({"majorities": False}, "majorities is no option of gfsam: it has "),
        ({"weights": "best.safetensors", "sam": "vit_t"}, "sam is given beside weights best.safetensors"),
        ({"size": 500, "sam": "vit_t"}, "size is 500: give a multiple of 16, such as 496"),
    ],
)
def test_what_cannot_be_loaded(options, words):
    stand_ins = mock.patch.multiple("fss.methods.gfsam", **STAND_INS)
    with stand_ins, pytest.raises(UserError, match=f"^{words}"):
        fss.load(**options)


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Segmenter(Colour()).device.type == "cpu"
    with pytest.raises(UserError, match="device is cuda but torch sees no CUDA device"):
        Segmenter(Colour(), device="cuda")


# --- the command ---


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
    (tmp_path / "photos" / "notes.txt").write_text("none")
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
        labels = np.array(first)    # the indices
        assert len({first.getpalette()[3 * i] for i in range(3)}) > 1
    assert labels[32, 40] == 1 and labels[16, 8] == 2 and labels[2, 62] == 0
    with Image.open(out / "second.png") as second:
        assert second.size == (WIDTH, 40) and set(np.unique(np.array(second))) == {0, 1}
    with Image.open(out / "first_overlay.jpg") as overlay:
        assert overlay.size == (WIDTH, HEIGHT)
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > sheet.height    # two lines of landscapes


def test_without_names_all_are_one_class(shots, photos, tmp_path):
    plain = [word for i, word in enumerate(shots) if i % 6 < 4]
    assert run(*plain, "--query", photos / "second.png", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "labels.txt").read_text() == "1 object\n"


def test_a_damaged_query_stops_none_of_the_others(shots, photos, tmp_path, capsys):
    (photos / "damaged.jpg").write_bytes((photos / "first.jpg").read_bytes()[:300])
    assert run(*shots, "--query", photos, "--out", tmp_path / "out") != 0
    assert "1 of 3 queries were left out; " in capsys.readouterr().err
    assert (tmp_path / "out" / "sheet.png").exists() and (tmp_path / "out" / "second.png").exists()
    assert not (tmp_path / "out" / "damaged.png").exists()


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
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_a_wrong_size_is_refused_before_weights_are_read(shots, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fss.engine.predict.method_of", lambda job: pytest.fail("the weights were read"))
    assert run(*shots, "--query", photos, "--size", "500", "--out", tmp_path / "out") != 0
    assert "size is 500: give a multiple of 16" in capsys.readouterr().err


def test_a_folder_without_a_picture(shots, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(*shots, "--query", tmp_path / "empty", "--out", tmp_path / "out") != 0
    assert "empty holds no picture (.jpg, .jpeg, .png): give a folder that does" in capsys.readouterr().err
