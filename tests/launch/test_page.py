"""The page as a user has it: a real browser uploads, draws, segments and downloads; and what the command refuses."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fss
from fss.evaluate.predictor import EpisodePredictor
from fss.inference.segmenter import Segmenter
from fss.methods.qgnet.config import QGNetConfig
from fss.methods.qgnet.method import QGNet
from fss.nn.exports import save_export
from launch.page import main
from tests.support.browser import Browser, browser
from tests.support.launching import refusal
from tests.support.places import ROOT

PATIENCE = 120  # seconds that anything on the page may take


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A QGNet as it was drawn, but for a bias by which the class is about half of a picture."""
    torch.manual_seed(0)
    method = QGNet(QGNetConfig(backbone="resnet18", size=65, prior_map="off", dim=16))
    segmenter = Segmenter(method, device="cpu")
    rng = np.random.default_rng(0)
    image, query = (rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(2))
    supports = segmenter.encode_supports([(image, image[..., 0] > 127)])["object"]
    predictor = EpisodePredictor(method, device=segmenter.device)
    square = predictor.fit(query).square
    margin = predictor.predict(predictor.encode(square), supports, "query").margin  # [1, 1, S, S]
    with torch.no_grad():
        method.trainable["decoder"].classify[-1].bias[1] -= margin.median()
    path = tmp_path_factory.mktemp("weights") / "qgnet.safetensors"
    save_export(path, *method.export())
    return path


@pytest.fixture
def pictures(tmp_path) -> dict[str, Path]:
    """Two photographs of blurred noise, and masks of the first one's size and of another."""
    rng = np.random.default_rng(1)
    made = {
        name: np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((40, 40, 1))).astype(np.uint8)
        for name in ("example", "other", "query")
    }
    made["mask"] = np.zeros(made["other"].shape[:2], np.uint8)
    made["mask"][40:160, 80:200] = 255
    made["small"] = made["mask"][:-40]
    for name, picture in made.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    return {name: tmp_path / f"{name}.png" for name in made}


@pytest.fixture
def address(weights, tmp_path) -> Iterator[str]:
    """Of the page, which runs as a process of its own and leaves nothing behind."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, str(ROOT / "launch" / "page.py"), "--weights", str(weights), "--device", "cpu"]
    environment = os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        match = re.search(r"page: (http://127\.0\.0\.1:\d+/)", line)
        assert match, line
        yield match[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert not list(temporary.glob("fss_page_*")), "what was uploaded stayed behind"
    finally:
        process.kill()
        process.wait()


class Visitor:
    """What a person does on the page."""

    def __init__(self, window: Browser) -> None:
        self.window = window
        self.driver = window.driver
        self._empty = until(self._zoom)  # of the canvas without a photograph

    def find(self, selector: str):
        return until(lambda: self.driver.find_elements("css selector", selector))[0]

    def upload(self, element: str, path: Path) -> None:
        self.find(f"#{element} input[type=file]").send_keys(str(path))
        until(lambda: path.name[:4] in self.driver.find_element("id", element).text)

    def click(self, selector: str) -> None:
        """By the mouse: Chromium lets a script begin one download only."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.find(selector))
        self.find(selector).click()

    def draw(self) -> None:
        """A stroke with a corner in the middle of the canvas, once the photograph is on it."""
        from selenium.webdriver import ActionChains

        canvas = self.find("#drawing canvas")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        until(lambda: self._zoom() != self._empty)
        time.sleep(1)
        pen = ActionChains(self.driver).move_to_element_with_offset(canvas, -40, -30).click_and_hold()
        pen.move_by_offset(60, 0).move_by_offset(0, 40).release().perform()
        time.sleep(1)

    def _zoom(self) -> str:
        return self.find("#drawing").text.partition("%")[0]

    def dismiss(self, words: str) -> None:
        """Wait for a complaint with these words, and close it."""
        until(lambda: words in self.driver.find_element("tag name", "body").text)
        self.find("button.toast-close").click()

    def downloaded(self, selector: str, name: str) -> np.ndarray:
        self.click(selector)
        path = self.window.downloads / name
        until(path.exists)
        with Image.open(path) as picture:
            return np.array(picture)


def until(condition: Callable):
    """What the condition gives as soon as it is true."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


@pytest.mark.timeout(600)
def test_upload_draw_segment_and_download(address, weights, pictures, tmp_path):
    """The mask that is downloaded is the one that the Python API gives for what was drawn."""
    with browser(tmp_path) as window:
        window.open(address)
        visitor = Visitor(window)
        visitor.click("#segment")
        visitor.dismiss("there is no example yet")
        visitor.upload("photograph", pictures["example"])
        visitor.upload("query", pictures["query"])
        visitor.click("#segment")
        visitor.dismiss("nothing is painted on example.png")
        visitor.draw()
        visitor.click("#segment")
        until(lambda: "by 1 example in" in visitor.find("#message").text)
        drawn = visitor.downloaded("#drawn a", "example_mask.png")
        found = visitor.downloaded("#save", "query_mask.png")
        assert drawn.shape == (240, 320) and 0 < (drawn > 0).mean() < 0.2
        segmenter = fss.load(weights, device="cpu")
        wanted = segmenter.predict(pictures["query"], [(pictures["example"], drawn)])
        assert 0 < wanted.labels.mean() < 1
        assert np.array_equal(found, wanted.labels)

        visitor.click("#more")
        visitor.upload("photograph", pictures["other"])
        visitor.upload("mask", pictures["small"])
        visitor.click("#segment")
        visitor.dismiss("mask small.png has 320 x 200 pixels but other.png has 320 x 240")
        visitor.find("#mask button[aria-label='Clear']").click()
        visitor.upload("mask", pictures["mask"])
        (window.downloads / "query_mask.png").unlink()
        visitor.click("#segment")
        until(lambda: "by 2 examples in" in visitor.find("#message").text)
        both = segmenter.predict(
            pictures["query"], [(pictures["example"], drawn), (pictures["other"], pictures["mask"])]
        )
        assert np.array_equal(visitor.downloaded("#save", "query_mask.png"), both.labels)
        assert not np.array_equal(both.labels, wanted.labels)
        assert window.misfits() == []
        window.open(address, width=420)
        visitor.find("#segment")
        assert window.misfits() == []
        assert window.complaints() == []


def test_without_gradio_the_error_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "fss.inference.web_page", raising=False)
    message = refusal(main, capsys, "--method", "prototype")
    assert message == "error: the page needs gradio, which is not installed: pip install -e '.[page]'"


def test_ports_that_cannot_be_had(weights, capsys):
    assert "port is 70000: give 1 to 65535" in refusal(main, capsys, "--weights", str(weights), "--port", "70000")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = refusal(main, capsys, "--weights", str(weights), "--device", "cpu", "--port", str(port))
        assert f"no page at 127.0.0.1, port {port}" in message and "give another --port" in message
