"""Try a method in the browser: draw on an example, see a query segmented.

python launch/page.py --weights runs/demo/qgnet/best.safetensors
python launch/page.py --method gfsam --method.dino_weights FILE --method.sam_weights FILE
"""

import sys
from dataclasses import dataclass
from typing import Any, Literal

from fss.command import command
from fss.config import EPISODIC, Schema, parse
from fss.errors import ConfigError
from fss.inference.segmenter import load_segmenter


@dataclass(frozen=True, kw_only=True)
class PageJob(Schema):
    """Segment pictures by examples, in the browser."""

    methods = EPISODIC

    host: str = "127.0.0.1"
    """Address to listen at: 127.0.0.1 is this machine alone; 0.0.0.0 serves every machine that reaches it, without a
    password."""
    port: int | None = None
    """null: the first free one from 7860."""
    size: int | None = None
    """Side of the square that the method sees, pixels; null: its own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if there is a device."""
    method: Any
    weights: str | None = None
    """Export of a meta-training run; its header brings the method and its options."""

    def __post_init__(self) -> None:
        if self.port is not None and not 0 < self.port < 1 << 16:
            raise ConfigError(f"port is {self.port}: give 1 to 65535")


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command with the words `argv` (None: those of the process); returns the exit code."""
    job = parse(PageJob, argv, prog="launch/page.py")
    from fss.inference.web_page import serve  # gradio is an extra that --help does not need

    segmenter, messages = load_segmenter(job)
    serve(segmenter, messages, host=job.host, port=job.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
