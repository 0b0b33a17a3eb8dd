"""For the site (mkdocs.yml): files of the repository that pages link to are pages of it as well."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "repository"  # of the site, for what is not in docs/
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)]*)?\)")  # its text, what it leads to, and where in it
MOST = 200  # lines of a file that are shown


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is linked to, and what that links to."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    known = set(waiting)
    for path in waiting:
        if path.endswith(".md"):
            for target in {_target(path, link) for _, link, _ in LINK.findall((ROOT / path).read_text())}:
                if (ROOT / target).exists() and not target.startswith("docs/") and target not in known:
                    known.add(target)
                    waiting.append(target)
    for path in waiting:
        if not path.startswith("docs/"):
            files.append(File.generated(config, _on_site(path), content=_content(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links at where the files are on the site, and names pages by their headings."""
    here = page.file.src_uri
    path = here.removeprefix(f"{FOLDER}/") if here.startswith(f"{FOLDER}/") else f"docs/{here}"

    def moved(link: re.Match[str]) -> str:
        text, to, anchor = link.groups(default="")
        target = _target(path, to)
        if not (ROOT / target).exists():
            return link[0]
        if text == to and to.endswith(".md") and (heading := re.match("# (.*)", (ROOT / target).read_text())):
            text = heading[1]
        return f"[{text}]({posixpath.relpath(_on_site(target), posixpath.dirname(here) or '.')}{anchor})"

    return LINK.sub(moved, markdown)


def _target(path: str, link: str) -> str:
    """What a link on a page means, from the root of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) if "://" not in link else link


def _on_site(path: str) -> str:
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{FOLDER}/{path}" if path.endswith(".md") else f"{FOLDER}/{path}.md"


def _content(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        return f"# {name}\n\n" + "".join(
            f"- `{inside.name}`\n" for inside in sorted(path.iterdir()) if inside.is_file()
        )
    text = path.read_text()
    if path.suffix == ".md":
        return text
    lines = text.splitlines(keepends=True)
    note = f"\nThe first {MOST} lines of {len(lines)}.\n" if len(lines) > MOST else ""
    kind = {".py": "python", ".json": "json", ".yaml": "yaml"}.get(path.suffix, "text")
    return f"# {name}\n{note}\n````{kind}\n{''.join(lines[:MOST])}````\n"
