"""The parts of the pages of README.md and docs/: blocks of code, commands, inline code and links.

An indented block is shell, one command a line. A fenced block names its language; Python is executed.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from tests.support.places import ROOT

SHELL = "shell"


@dataclass(frozen=True)
class Code:
    """Some code on a page: a block, a command or an inline word."""

    page: str
    line: int
    """Its first line, from 1."""
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Page:
    """A Markdown file; `name` is its path from the root of the checkout."""

    name: str

    @cached_property
    def lines(self) -> list[str]:
        return (ROOT / self.name).read_text().splitlines()

    @cached_property
    def blocks(self) -> list[Code]:
        found, inside, language = [], [], None
        for number, line in enumerate([*self.lines, ""], 1):
            if line.startswith("```"):
                if language is None:
                    language, inside = line[3:].strip(), []
                    continue
                found.append(Code(self.name, number - len(inside), language, "\n".join(inside)))
                language, inside = None, []
            elif language is not None:
                inside.append(line)
            elif line.startswith("    ") and (inside or not self.lines[number - 2]):
                inside.append(line[4:])
            elif inside:
                found.append(Code(self.name, number - len(inside), SHELL, "\n".join(inside)))
                inside = []
        return found

    @property
    def commands(self) -> Iterator[Code]:
        """Every command of the shell blocks, continued lines joined."""
        for block in self.blocks:
            if block.language != SHELL:
                continue
            begun: list[str] = []
            for number, line in enumerate(block.text.split("\n"), block.line):
                begun.append(line.removesuffix("\\").strip())
                if not line.endswith("\\"):
                    yield Code(self.name, number - len(begun) + 1, SHELL, " ".join(begun))
                    begun = []

    @cached_property
    def prose(self) -> list[str]:
        """The lines; those of blocks are empty."""
        blocks = {line for block in self.blocks for line in range(block.line, block.line + len(block.text.split("\n")))}
        return ["" if number in blocks else line for number, line in enumerate(self.lines, 1)]

    @property
    def inline(self) -> Iterator[Code]:
        """Every `word` or `few words` of the text, with the line where it ends."""
        text = "\n".join(self.prose)
        for found in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
            line = text.count("\n", 0, found.end()) + 1
            yield Code(self.name, line, "inline", re.sub(r"\s+", " ", found[1]))

    @property
    def links(self) -> Iterator[Code]:
        """Every link to a file and every picture."""
        for number, line in enumerate(self.prose, 1):
            for target in re.findall(r"\]\(([^)#]+)[^)]*\)", line):
                if not target.startswith("http"):
                    yield Code(self.name, number, "link", target)


PAGES = [Page(str(path.relative_to(ROOT))) for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])]


def words(command: str) -> list[list[str]]:
    """The simple commands of a line of shell, each as words; comments are dropped."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;"):
            found.append([])
        else:
            found[-1].append(word)
    return [simple for simple in found if simple]
