"""The page in the browser: examples are uploaded and drawn on, a query comes back segmented. The only file with gradio.

Nothing on the page comes from elsewhere than its own server, and what is uploaded goes when the server ends.
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
except ModuleNotFoundError as missing:
    raise UserError(f"the page needs {missing.name}, which is not installed: pip install -e '.[page]'") from None

CANVAS = 1024  # longer side of what is drawn on: browsers draw slowly on the pictures of today's cameras
FONT, FIXED = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # gradio's own would come from elsewhere
BRUSH = "rgba(230, 159, 0, 0.65)"
LARGEST = "100mb"  # of an uploaded file


@dataclass(frozen=True)
class Example:
    """A support of the class that is looked for: two files."""

    photograph: str
    mask: str
    drawn: bool
    """Whether the mask was made on the page."""


def serve(segmenter: Segmenter, notes: Sequence[str], *, host: str, port: int | None) -> None:
    """Show the page at `host` until the process is asked to end; its address is printed.

    notes: what a user must know of the method. port: None is the first free one from 7860.
    Raises UserError where the address cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="fss_page_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # or what people upload would stay behind
        page = build(segmenter, notes, Path(folder))
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


def build(segmenter: Segmenter, notes: Sequence[str], folder: Path) -> gr.Blocks:
    """The page; what is drawn and found is written into `folder`."""
    name = segmenter.method.config.name
    with gr.Blocks(title=f"{name}: few-shot segmentation", analytics_enabled=False) as page:
        gr.Markdown(f"# Find what an example shows\n{name}, on {segmenter.device.type}")
        for note in notes:
            gr.Markdown(f"*Note: {note}*")
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
                go = gr.Button("Segment", ablation="primary", elem_id="go")
                said = gr.Markdown(elem_id="said")
                overlay = gr.Image(label="Found", format="jpeg", buttons=["fullscreen"], elem_id="overlay")
                save = gr.DownloadButton("Download the mask", interactive=False, elem_id="save")
        now = [examples, photograph, drawing, mask]
        told = _told(folder)

        photograph.change(told(_on_canvas), photograph, drawing)
        more.click(told(lambda *shown: _added(folder, *shown)), now, [*now, used, drawn])
        forget.click(lambda: ([], None, None, None, None, gr.File(None, visible=False)), None, [*now, used, drawn])
        found = told(lambda *shown: _segmented(segmenter, folder, *shown))
        go.click(found, [*now, query], [overlay, said, save, used, drawn], show_progress_on=overlay)
    return page


def _upload(label: str, elem_id: str) -> gr.File:
    return gr.File(label=label, file_types=["image"], height=150, elem_id=elem_id)


def _told(folder: Path) -> Callable[[Callable], Callable]:
    """A decorator: what the user can mend comes up on the page in a sentence, without the names of our folders."""

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
    """What the user shows at the moment; None where nothing was chosen. A file of the mask goes before a drawing."""
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


def _added(folder: Path, examples: list[Example], photograph: str | None, drawing: dict | None, mask: str | None):
    """The example at hand joins the others, and there is room for the next."""
    example = _example(folder, photograph, drawing, mask)
    if example is None:
        raise UserError("there is no example to add: choose a photograph, and paint over the object in it")
    examples = [*examples, example]
    return examples, None, None, None, *_shown(examples)


def _segmented(
    segmenter: Segmenter,
    folder: Path,
    examples: list[Example],
    photograph: str | None,
    drawing: dict | None,
    mask: str | None,
    query: str | None,
):
    """The query with what was found, what is to be said of it, the mask, and the examples that showed it."""
    if (example := _example(folder, photograph, drawing, mask)) is not None:
        examples = [*examples, example]
    if not examples:
        raise UserError("there is no example yet: choose a photograph, and paint over the object in it")
    if query is None:
        raise UserError("there is no picture to search: choose one")
    began = time.monotonic()
    found = segmenter.predict(query, [(example.photograph, example.mask) for example in examples])
    seconds = time.monotonic() - began
    path = _new(folder, f"{Path(query).stem}_mask.png")
    found.save_labels(Path(path))
    share = found.mask().mean()
    words = f"**{share:.1%} of the picture**" if share else "**Nothing found**"
    if found.sure is not None:
        words += f", of which the method is {found.sure:.0%} sure,"
    sentence = f"{words} by {len(examples)} example{'s' if len(examples) > 1 else ''} in {seconds:.2f} s."
    flags = "".join(f"\n\n{remark}" for remark in found.flags)
    return found.overlay(), sentence + flags, gr.DownloadButton(value=path, interactive=True), *_shown(examples)


def _shown(examples: Sequence[Example]) -> tuple[list, gr.File]:
    """The examples as small pictures with their masks, and the masks that were drawn, to keep."""
    pictures = [
        (paint.support(read_photograph(example.photograph), read_mask(example.mask)), Path(example.photograph).name)
        for example in examples
    ]
    drawn = [example.mask for example in examples if example.drawn]
    return pictures, gr.File(drawn or None, visible=bool(drawn))


def _new(folder: Path, name: str) -> str:
    return str(Path(tempfile.mkdtemp(dir=folder)) / name)
