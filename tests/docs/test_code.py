"""The code on the pages runs, and its configs are configs."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from doc_pages import blocks
from homes import REPO, make_trained_home
from pages import write_thoughts
from PIL import Image
from reference import LATENT, internvl, mixed_batch

from multicoco.cli import main
from multicoco.config import load_config
from multicoco.curriculum import ExampleTokens, LatentTokens
from multicoco.data.sources.location import locate
from multicoco.data.sources.mixture import read_parts
from multicoco.study.spec import load_study

PYTHON, YAML = blocks("python"), blocks("yaml")
IN_PARTS = "contributing.md", "tutorial.md"  # have tests of their own


@pytest.fixture(scope="module")
def reader(tmp_path_factory, one_thread):
    """A folder in which what the pages name is there: checkpoints, an evaluation with thoughts, a picture."""
    home = make_trained_home(tmp_path_factory.mktemp("reader"))
    (home / "runs" / "demo").mkdir()
    for name in ("demo/coconut", "my_coconut"):
        (home / "runs" / name).symlink_to(home / "runs" / "run")
    (home / "runs" / "eval").mkdir()
    write_thoughts(home / "runs" / "eval", "coconut", 3)
    Image.new("RGB", (84, 84), "red").save(home / "photo.png")
    for name in ("args", "ds_configs"):
        shutil.copytree(REPO / name, home / name)
    return home


@pytest.mark.parametrize("name", sorted({block.page.name for block in PYTHON} - {*IN_PARTS}))
def test_python_runs_from_the_top_of_its_page_to_the_end(name, reader, monkeypatch):
    monkeypatch.chdir(reader)
    given: dict[str, Any] = {"model": internvl().double(), "latent_token_id": LATENT, **mixed_batch("internvl")}
    code = [block.text for block in PYTHON if block.page.name == name]
    for text in code:
        exec(text, given)


@pytest.mark.parametrize("block", [block for block in YAML if block.page.name not in IN_PARTS], ids=lambda b: b.label)
def test_yaml_is_what_it_is_said_to_be(block, reader, monkeypatch):
    monkeypatch.chdir(reader)
    content = yaml.safe_load(block.text)
    if isinstance(content, list):
        (reader / "mixture.yaml").write_text(block.text)
        assert len(read_parts(locate(reader, "mixture.yaml"))) == len(content)
    elif "arms" in content:
        (reader / "args" / "studies" / "new.yaml").write_text(block.text)
        jobs = load_study(reader / "args" / "studies" / "new.yaml").jobs
        assert len(jobs) == len(content["seeds"]) * len(content["arms"]) * (1 + len(content["tests"]))
    else:
        (reader / "args" / "new.yaml").write_text(f"inherits: aokvqa_coconut_eval.yaml\n{block.text}")
        assert load_config(reader / "args" / "new.yaml")


@pytest.fixture(scope="module")
def examples() -> dict:
    """What the code of docs/contributing.md defines."""
    defined: dict = {}
    code = [block.text for block in blocks("python") if block.page.name == "contributing.md"]
    assert len(code) == 3
    for text in code:
        exec(text, defined)
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


def test_the_tutorial_comes_as_far_as_its_training(tmp_path, monkeypatch, capsys):
    """Its own data, configs, model and study; what is trained from there on is trained like any run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "args").symlink_to(REPO / "args")
    (tmp_path / "ds_configs").symlink_to(REPO / "ds_configs")
    for block in [block for block in PYTHON if block.page.name == "tutorial.md"]:
        exec(block.text, {})
    for block in [block for block in YAML if block.page.name == "tutorial.md"]:
        (tmp_path / block.text.split()[1]).write_text(block.text)
    assert main(["prepare", "model", "--config", "mine/cot.yaml", "--out", "models/tiny"]) == 0
    assert main(["data", "mine/coconut.yaml"]) == 0  # before the run that it starts from is there
    shown = capsys.readouterr().out
    page = [block.text.lstrip("\n") for block in blocks("") if block.page.name == "tutorial.md"]
    [rows] = [text for text in page if text.startswith("stage")]
    assert rows in shown
    assert load_config("mine/eval.yaml").eval_config.thoughts
    assert len(load_study(Path("mine/study.yaml")).jobs) == 4 * (1 + 2)
