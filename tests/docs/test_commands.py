"""The commands on the pages are taken by the programs that they call, and name files that are there."""

import re
import shlex
import sys
from collections.abc import Iterator

import pytest
import train
import yaml
from doc_pages import Block, blocks
from homes import REPO

from multicoco.cli import parser
from multicoco.config import load_config

_PROGRAM = re.compile(r"(?:\$ )?((?:multicoco|deepspeed|torchrun|python|sbatch|make) .*)")


def commands() -> Iterator[tuple[Block, list[str]]]:
    """Their words, without what only stands for something: [brackets] around what may be left out, redirections."""
    for block in blocks("", "bash", "sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if match := _PROGRAM.fullmatch(line):
                words = shlex.split(re.sub(r" [<>] \S+|(?<= )\[|\](?= |$)", "", match[1]), comments=True)
                yield block, words


def listed(*programs: str) -> list:
    found = [(block, words) for block, words in commands() if words[0] in programs]
    return [pytest.param(words, id=f"{block.page.name}: {shlex.join(words)[:70]}") for block, words in found]


def trainings() -> list:
    return [one for one in listed("deepspeed", "torchrun", "python") if "train.py" in one.values[0]]


@pytest.mark.parametrize("words", listed("multicoco"))
def test_multicoco_takes_it(words):
    args = parser().parse_args(words[1:])
    config = str(getattr(args, "config", "") or "")
    if config.startswith("args/"):
        load_config(REPO / config, [pair for pair in getattr(args, "overrides", []) if pair != "KEY=VALUE"])


@pytest.mark.parametrize("words", trainings())
def test_train_takes_it(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", words[words.index("train.py") :])
    args = train.parse_args()
    if args.config.startswith("args/"):
        load_config(REPO / args.config, args.overrides)


@pytest.mark.parametrize("words", listed("sbatch", "make", "python"))
def test_what_it_names_is_there(words):
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (REPO / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        assert not re.match(r"(args|deploy|tests|benchmarks)/[\w/.]+$", word) or (REPO / word).exists(), word


def test_each_arm_of_the_array_waits_for_the_one_that_it_starts_from():
    """The jobs of docs/studies.md are those of its study, in an order that Slurm takes."""
    [study] = [block.text for block in blocks("yaml") if block.page.name == "studies.md" and "arms:" in block.text]
    [script] = [block.text for block in blocks("") if block.page.name == "studies.md" and "arm.sbatch" in block.text]
    after = {name: arm.get("after") for name, arm in yaml.safe_load(study)["arms"].items()}
    submitted: dict[str, str | None] = {}
    ids: dict[str, str] = {}
    for line in filter(None, script.splitlines()):
        name, options, arm = re.fullmatch(r"(?:(\w+)=\$\()?sbatch (.*) arm\.sbatch (\w+)\)?", line).groups()
        needs = re.search(r"--dependency=aftercorr:\$(\w+)", options)
        submitted[arm] = needs and ids[needs[1]]  # a KeyError where it is not submitted yet
        if name:
            assert "--parsable" in options
            ids[name] = arm
        assert "--array=0-2" in options and yaml.safe_load(study)["seeds"] == [0, 1, 2]
    assert submitted == after


def test_there_are_commands_of_every_kind():
    """What reads the pages does not pass them over."""
    found = [words[:2] for _, words in commands()]
    assert len(found) > 60
    assert {"multicoco", "deepspeed", "torchrun", "python", "sbatch", "make"} == {first for first, _ in found}
    known = {action.metavar: action.choices for action in parser()._actions}["COMMAND"]
    assert {*known} == {second for first, second in found if first == "multicoco"}, "each has an example"
