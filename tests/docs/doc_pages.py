"""The pages of the documentation, and the code in them."""

import re
from pathlib import Path
from typing import NamedTuple

from homes import REPO

PAGES = [*REPO.glob("*.md"), *(REPO / "docs").glob("*.md"), REPO / "deploy" / "docker" / "README.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^```(\w*)\n((?:.*\n)*?)```$|((?:^    .*\n|^\n(?=    ))+)", re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(REPO).as_posix()


class Block(NamedTuple):
    """Code on a page; its language is "" where it is only indented."""

    page: Path
    language: str
    text: str

    @property
    def label(self) -> str:
        return f"{name_of(self.page)}: {self.text.strip().splitlines()[0][:60]}"


def blocks(*languages: str) -> list[Block]:
    """Of all pages."""
    found = []
    for page in PAGES:
        for language, fenced, indented in _BLOCK.findall(page.read_text()):
            if language in languages:
                found.append(Block(page, language, fenced or re.sub("^    ", "", indented, flags=re.MULTILINE)))
    return found


def prose(page: Path) -> str:
    """A page without its code."""
    return _BLOCK.sub("", page.read_text())
