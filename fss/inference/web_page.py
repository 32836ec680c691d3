"""The web page: users upload and mark examples, and see a query segmented. The only file with gradio.

Everything on the page comes from its own server. Uploaded files are deleted when the server ends.
"""

import html
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from fss.errors import UserError
from fss.inference.segmenter import Segmenter
from fss.inference.user_images import read_mask, read_photograph
from fss.report import paint

try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise UserError(f"the page needs {error.name}, which is not installed: pip install -e '.[page]'") from None

CANVAS = 1024  # longer side of the canvas, pixels: browsers draw slowly on larger ones
FONT, FIXED = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # gradio's own would come from another server
BRUSH = "rgba(230, 159, 0, 0.65)"
LARGEST = "100mb"  # of an uploaded file


@dataclass(frozen=True)
class Example:
    """A support of the class: two files."""

    photograph: str
    mask: str
    drawn: bool
    """True if the mask was painted on the page."""


def serve(segmenter: Segmenter, messages: Sequence[str], *, host: str, port: int | None) -> None:
    """Serve the page at `host` until the process gets SIGINT or SIGTERM, and print its address.

    messages: sentences about the method, to be shown on the page. port: None is the first free one from 7860.
    Raises UserError if the address is taken or does not exist.
    """
    with tempfile.TemporaryDirectory(prefix="fss_page_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # so that uploaded files are deleted with it
        page = build(segmenter, messages, Path(folder))
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                max_file_size=LARGEST,
                footer_links=[],
                theme=gr.themes.Default(font=FONT, font_mono=FIXED),
            )
        except OSError as error:
            raise UserError(f"no page at {host}, port {port or 'from 7860'} ({error}): give another --port") from None
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        print(f"page: {address} (Ctrl-C ends it)", flush=True)
        page.block_thread()


def build(segmenter: Segmenter, messages: Sequence[str], folder: Path) -> gr.Blocks:
    """Build the page; drawn masks and label maps are written into `folder`."""
    name = segmenter.method.config.name
    with gr.Blocks(title=f"{name}: few-shot segmentation", analytics_enabled=False) as page:
        gr.Markdown(f"# Find what an example shows\n{name}, on {segmenter.device.type}")
        for message in messages:
            gr.Markdown(f"*Note: {message}*")
        examples = gr.State([])
        with gr.Row():
            with gr.Column():
                gr.Markdown("## 1. Show an example")
                photograph = _upload("Photograph with the object in it", "photograph")
                drawing = gr.ImageEditor(
                    label="Paint over the object",
                    type="numpy",
                    image_mode="RGBA",
                    format="png",
                    sources=(),
                    transforms=(),
                    layers=False,
                    elem_id="drawing",
                    buttons=["fullscreen"],
                    brush=gr.Brush(default_size=30, colors=[BRUSH], default_color=BRUSH, color_mode="fixed"),
                    placeholder="The photograph appears here",
                )
                mask = _upload("Or its mask as a file: the object in any colour on black", "mask")
                with gr.Row():
                    more = gr.Button("Add another example", elem_id="more")
                    forget = gr.Button("Forget all examples", elem_id="forget")
                used = gr.Gallery(
                    label="Examples so far", columns=3, height=220, object_fit="contain", elem_id="used", buttons=[]
                )
                drawn = gr.File(label="Masks drawn here, as files", elem_id="drawn", interactive=False, visible=False)
            with gr.Column():
                gr.Markdown("## 2. Search a picture for it")
                query = _upload("Picture to search", "query")
                segment = gr.Button("Segment", variant="primary", elem_id="segment")
                summary = gr.Markdown(elem_id="message")
                overlay = gr.Image(label="Found", format="jpeg", buttons=["fullscreen"], elem_id="overlay")
                save = gr.DownloadButton("Download the mask", interactive=False, elem_id="save")
        inputs = [examples, photograph, drawing, mask]
        reporting = _reporting_errors(folder)

        photograph.change(reporting(_on_canvas), photograph, drawing)
        more.click(reporting(lambda *values: _add(folder, *values)), inputs, [*inputs, used, drawn])
        forget.click(lambda: ([], None, None, None, None, gr.File(None, visible=False)), None, [*inputs, used, drawn])
        run = reporting(lambda *values: _segment(segmenter, folder, *values))
        segment.click(run, [*inputs, query], [overlay, summary, save, used, drawn], show_progress_on=overlay)
    return page


def _upload(label: str, elem_id: str) -> gr.File:
    return gr.File(label=label, file_types=["image"], height=150, elem_id=elem_id)


def _reporting_errors(folder: Path) -> Callable[[Callable], Callable]:
    """A decorator that shows a UserError on the page as a sentence, without the names of temporary folders."""

    def decorate(function: Callable) -> Callable:
        @wraps(function)
        def call(*arguments: object) -> object:
            try:
                return function(*arguments)
            except UserError as error:
                sentence = re.sub(rf"{re.escape(str(folder))}/[^/ ]+/", "", str(error))
                raise gr.Error(html.escape(sentence), duration=None, title="", print_exception=False) from None

        return call

    return decorate


def _on_canvas(photograph: str | None) -> dict | None:
    """The photograph to draw on, not larger than `CANVAS`."""
    if photograph is None:
        return None
    image = Image.fromarray(read_photograph(photograph))
    image.thumbnail((CANVAS, CANVAS))
    return {"background": image, "layers": [], "composite": None}


def _example(folder: Path, photograph: str | None, drawing: dict | None, mask: str | None) -> Example | None:
    """The example on the page; None if no photograph is chosen. A mask file takes precedence over a drawing."""
    if photograph is None:
        if mask is not None:
            raise UserError("a mask was chosen without its photograph: choose that, too")
        return None
    if mask is not None:
        return Example(photograph, mask, drawn=False)
    layers = (drawing or {}).get("layers") or []
    painted = np.maximum.reduce([layer[..., 3] for layer in layers]) if layers else np.zeros((1, 1), np.uint8)
    if not painted.any():
        raise UserError(f"nothing is painted on {Path(photograph).name}: paint over the object, or choose its mask")
    height, width = read_photograph(photograph).shape[:2]
    whole = cv2.resize(255 * (painted > 0).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    path = _new(folder, f"{Path(photograph).stem}_mask.png")
    Image.fromarray(whole).save(path)
    return Example(photograph, path, drawn=True)


def _add(
    folder: Path, examples: list[Example], photograph: str | None, drawing: dict | None, mask: str | None
) -> tuple:
    """Append the example on the page to the others, and clear its fields."""
    example = _example(folder, photograph, drawing, mask)
    if example is None:
        raise UserError("there is no example to add: choose a photograph, and paint over the object in it")
    examples = [*examples, example]
    return examples, None, None, None, *_gallery(examples)


def _segment(
    segmenter: Segmenter,
    folder: Path,
    examples: list[Example],
    photograph: str | None,
    drawing: dict | None,
    mask: str | None,
    query: str | None,
) -> tuple:
    """Segment the query: its overlay, a summary, the mask as a file, and the examples that were used."""
    if (example := _example(folder, photograph, drawing, mask)) is not None:
        examples = [*examples, example]
    if not examples:
        raise UserError("there is no example yet: choose a photograph, and paint over the object in it")
    if query is None:
        raise UserError("there is no picture to search: choose one")
    began = time.monotonic()
    segmented = segmenter.predict(query, [(example.photograph, example.mask) for example in examples])
    seconds = time.monotonic() - began
    path = _new(folder, f"{Path(query).stem}_mask.png")
    segmented.save_labels(Path(path))
    fraction = segmented.mask().mean()
    words = f"**{fraction:.1%} of the picture**" if fraction else "**Nothing found**"
    if segmented.confidence is not None:
        words += f", of which the method is {segmented.confidence:.0%} sure,"
    sentence = f"{words} by {len(examples)} example{'s' if len(examples) > 1 else ''} in {seconds:.2f} s."
    flags = "".join(f"\n\n{flag}" for flag in segmented.flags)
    return segmented.overlay(), sentence + flags, gr.DownloadButton(value=path, interactive=True), *_gallery(examples)


def _gallery(examples: Sequence[Example]) -> tuple[list, gr.File]:
    """The examples as pictures with their masks and names, and the masks that were drawn, as files."""
    pictures = [
        (paint.support(read_photograph(example.photograph), read_mask(example.mask)), Path(example.photograph).name)
        for example in examples
    ]
    drawn = [example.mask for example in examples if example.drawn]
    return pictures, gr.File(drawn or None, visible=bool(drawn))


def _new(folder: Path, name: str) -> str:
    return str(Path(tempfile.mkdtemp(dir=folder)) / name)
