"""The documentation holds together: its links lead somewhere, its examples work."""

import re
from types import SimpleNamespace

import pytest
import torch
from homes import REPO

from multicoco.curriculum import ExampleTokens, LatentTokens

PAGES = [*REPO.glob("*.md"), *(REPO / "docs").glob("*.md"), REPO / "deploy" / "docker" / "README.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(markdown: str) -> set[str]:
    """As sites make them of headings: lower case, hyphens for spaces, without punctuation."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(REPO).as_posix())
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


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_lines_are_wrapped(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > 125 and not line.startswith(("|", "    "))]
    assert not long


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_every_test_that_is_named_exists(page):
    for path, name in re.findall(r"`(?:python -m pytest )?(tests/[\w./]*)(?:::(\w+))?", page.read_text()):
        assert (REPO / path).exists(), path
        assert not name or re.search(rf"(def|class) {name}\b", (REPO / path).read_text()), name


@pytest.fixture(scope="module")
def examples() -> dict:
    """What the code of docs/contributing.md defines."""
    defined: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "contributing.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, defined)
    return defined


def test_the_example_of_a_method_has_as_many_thoughts_as_its_passes_need(examples):
    config = SimpleNamespace(num_epochs=1, noisy=examples["NoisyKeys"](scale=0))
    method = examples["Noisy"](config, LatentTokens(1, 2, 3))
    tokens = ExampleTokens([10, 11], [[20], [21]], [30])
    ids, _ = method.train_row(tokens, stage=0, epoch=0, example_id="a")
    assert ids.count(2) == method.prompt_row(tokens, 0).count(2) == method.passes(0) - 1
    assert sum(method.extent(tokens, 0)) == len(ids)
    hidden = torch.ones(2, 4)
    assert torch.equal(method.thought_source()(hidden, 0), hidden)


def test_the_example_of_a_family_counts_from_one(examples):
    family = examples["FromOne"](SimpleNamespace())
    assert family.position_ids(torch.zeros(1, 3), torch.ones(1, 3), {}).tolist() == [[1, 2, 3]]
    assert examples["FromOne"].matches(SimpleNamespace(model_type="counting"))


def test_the_example_of_a_source_reads_its_record(examples, tmp_path):
    record = {"riddle": "What has an eye?", "hints": ["It is thin."], "solution": "a needle"}
    assert examples["Riddles"].matches(record)
    example = examples["Riddles"](tmp_path, "sentences").parse(record, "1")
    assert (example.question, example.steps, example.answer) == ("What has an eye?", ("It is thin.",), "a needle")
