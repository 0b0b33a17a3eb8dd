"""The documentation holds together: its links lead somewhere, and what it names exists."""

import re

import pytest
from doc_pages import LINK, PAGES, name_of, prose
from homes import REPO

from multicoco.cli import parser
from multicoco.config import RunConfig, check_keys
from multicoco.config.schema import all_keys
from multicoco.evaluation.metrics import summarize
from multicoco.study.keys import ArmSpec, QuestionsSpec, StudySpec
from multicoco.study.schema import PairResult, RunResult, StudyResult


def anchors(markdown: str) -> set[str]:
    """As sites make them of headings: lower case, hyphens for spaces, without punctuation."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_every_page_is_found_from_the_readme():
    text = (REPO / "README.md").read_text()
    assert {f"docs/{page.name}" for page in (REPO / "docs").glob("*.md")} <= set(LINK.findall(text))
    assert len(text.splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_wrapped(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > 125 and not line.startswith(("|", "    "))]
    assert not long


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_row_stands_in_a_table(page):
    """Of lines that begin with |, the second draws the line under the headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert re.fullmatch(r"\|(?: *:?-+:? *\|)+", [*table.splitlines(), ""][1]), table.splitlines()[0]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_test_that_is_named_exists(page):
    for path, name in re.findall(r"`(?:python -m pytest )?(tests/[\w./]*)(?:::(\w+))?", page.read_text()):
        assert (REPO / path).exists(), path
        assert not name or re.search(rf"(def|class) {name}\b", (REPO / path).read_text()), name


def test_the_site_shows_every_page_once_under_a_heading():
    pages = re.findall(r"^ *- (?:\w+: )?([\w/]+\.md)$", (REPO / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(pages) == sorted(page.name for page in (REPO / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_key_and_command_that_is_named_exists(page):
    """In running text, between backticks."""
    [commands] = [action.choices for action in parser()._actions if action.metavar == "COMMAND"]
    sections = {key.partition(".")[0] for key, _ in all_keys(RunConfig) if "." in key}
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        if match := re.fullmatch(r"multicoco (\w+)\b.*", code):
            assert match[1] in commands, code
        elif (match := re.fullmatch(r"((\w+)\.(?!py$|json$)\w+)(: .*)?", code)) and match[2] in sections:
            check_keys([match[1]], name_of(page))


def test_the_page_of_studies_tells_of_every_key():
    """Of STUDY.yaml, in the first cells of its table, and of study.json."""
    of_the_yaml, of_the_json = (REPO / "docs" / "studies.md").read_text().split("\n## study.json\n")
    told = re.findall(r"^\| (?:(\w+): )?`(\w+)` \|", of_the_yaml, re.MULTILINE)
    keys = {"": StudySpec, "arm": ArmSpec, "test": QuestionsSpec}
    assert sorted(told) == sorted((of, key) for of, section in keys.items() for key in section.model_fields)
    named = set(re.findall(r"`(\w+)`", of_the_json))
    assert {key for section in (StudyResult, RunResult, PairResult) for key in section.model_fields} <= named


def test_the_page_of_evaluation_tells_of_every_key_of_a_summary():
    told = (REPO / "docs" / "evaluation.md").read_text().split("\n## What is reported\n")[1]
    assert summarize([]).keys() <= set(re.findall(r"`(\w+)`", told))
