"""The structure of an HTML page."""

from html.parser import HTMLParser
from pathlib import Path


class Outline(HTMLParser):
    """The references of a page, and its open tags after the last line.

    Raises AssertionError if a tag is closed that is not the innermost open one.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: set[str] = set()
        self.rawdata = path.read_text()
        self.close()  # parses it

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.links |= {value for name, value in attrs if name in ("src", "href") and value}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
