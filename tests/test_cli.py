import argparse
import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from multicoco.cli import main, parser
from multicoco.models.backbone import load_backbone


def test_scenes_and_model_are_made_by_two_commands(tmp_path, capsys):
    scenes, model = tmp_path / "scenes", tmp_path / "model"
    assert main(["prepare", "scenes", "--out", str(scenes), "--train", "12", "--val", "8", "--test", "4"]) == 0
    assert "12 train, 8 val, 4 test" in capsys.readouterr().out
    train = scenes / "aokvqa_v1p0_train.json"
    assert main(["prepare", "model", "--data", str(train), "--out", str(model)]) == 0
    tokenizer = load_backbone(str(model)).tokenizer
    question = json.loads(train.read_text())[0]["question"]
    assert tokenizer.decode(tokenizer.encode(question)) == question
    assert len(tokenizer.encode(question, add_special_tokens=False)) < len(question) / 3  # it knows the words


def test_text_tasks_and_their_model_are_made_by_commands(tmp_path, capsys):
    counts = ["--val", "4", "--test", "0"]
    commands = {
        "scenes": ["prepare", "scenes", "--text", "--train", "9", *counts, "--hops", "4", "--distractors", "2"],
        "prosqa": ["prepare", "prosqa", "--n", "9", *counts, "--nodes", "12", "--hops", "2", "3", "--same-depth"],
        "ood": [
            "prepare",
            "prosqa",
            "--n",
            "0",
            *counts,
            "--hops",
            "5",
            "--shape",
            "tree",
            "--apart-from",
            "{tmp}/prosqa",
        ],
    }
    for name, command in commands.items():
        out = ["--out", str(tmp_path / name)]
        assert main([*(part.format(tmp=tmp_path) for part in command), *out]) == 0
        assert "4 val, 0 test" in capsys.readouterr().out
    data = tmp_path / "prosqa" / "prosqa_train.json"
    assert main(["prepare", "model", "--text", "--data", str(data), "--out", str(tmp_path / "model")]) == 0
    tokenizer = load_backbone(str(tmp_path / "model")).tokenizer
    question = json.loads(data.read_text())[0]["question"]
    assert tokenizer.decode(tokenizer.encode(question)) == question


def test_a_model_is_made_for_the_records_that_a_run_reads(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"ask": "Which colour?", "why": "It is so.", "then": "tourmaline"}\n')
    run = "{mode: cot_train, name: x, model_id: m, data_dir: %s, train_path: a.jsonl, %s}"
    columns = "columns: {question: ask, steps: why, answer: then}"
    for name, keys in (("run", columns), ("bad", "lr: 1"), ("none", "")):
        (tmp_path / f"{name}.yaml").write_text(run % (tmp_path, keys))
    (tmp_path / "none.yaml").write_text("{mode: eval_only, name: x, model_id: m, eval_config: {cot: true}}")
    command = ["prepare", "model", "--text", "--out", str(tmp_path / "model"), "--config"]
    assert main([*command, str(tmp_path / "bad.yaml")]) == 1
    assert "'question' is missing, there are 'ask', 'why', 'then'" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "run.yaml")]) == 0
    assert len(load_backbone(str(tmp_path / "model")).tokenizer.encode("tourmaline", add_special_tokens=False)) < 4


def test_a_model_is_made_of_the_family_that_is_named_if_it_sees_the_pictures(tmp_path, capsys):
    scenes = tmp_path / "scenes"
    assert main(["prepare", "scenes", "--out", str(scenes), "--train", "2", "--val", "1", "--test", "0"]) == 0
    data = str(scenes / "aokvqa_v1p0_train.json")
    assert main(["prepare", "model", "--text", "--data", data, "--out", str(tmp_path / "model")]) == 1
    assert "has an image" in capsys.readouterr().err
    assert main(["prepare", "model", "--family", "llava", "--data", data, "--out", str(tmp_path / "model")]) == 1
    assert "--family llava: there are tiny models of internvl" in capsys.readouterr().err
    assert main(["prepare", "model", "--family", "qwen3_vl", "--data", data, "--out", str(tmp_path / "model")]) == 0
    assert load_backbone(str(tmp_path / "model")).model.config.model_type == "qwen3_vl"


def test_lines_of_gsm8k_become_records(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Q?||<<1+1=2>> #### 2\n")
    assert main(["prepare", "gsm8k", str(tmp_path / "a.txt"), "--out", str(tmp_path / "a.json")]) == 0
    assert "1 records" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text()) == [{"question": "Q?", "steps": ["<<1+1=2>>"], "answer": 2}]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["prepare", "scenes", "--out", "{tmp}/full"], "{tmp}/full is not empty"),
        (["prepare", "scenes", "--out", "{tmp}/new", "--hops", "9"], "hops must be 1 to 8"),
        (["prepare", "scenes", "--out", "{tmp}/new", "--apart-from", "{tmp}/full"], "{tmp}/full: holds no pictures"),
        (["prepare", "prosqa", "--out", "{tmp}/full"], "{tmp}/full is not empty"),
        (["prepare", "prosqa", "--out", "{tmp}/new", "--shape", "ring"], "dag, tree, dense"),
        (["prepare", "prosqa", "--out", "{tmp}/new", "--apart-from", "{tmp}/full"], "{tmp}/full: holds no questions"),
        (["prepare", "gsm8k", "{tmp}/full/mine.txt", "--out", "{tmp}/new.json"], "mine.txt"),
        (["prepare", "model", "--data", "{tmp}/none.json", "--out", "{tmp}/new"], "{tmp}/none.json"),
        (["prepare", "model", "--data", "{tmp}/none.json", "--out", "{tmp}/full"], "{tmp}/full is not empty"),
        (["summarize", "--cot", "{tmp}/none", "--out", "{tmp}/out.json"], "{tmp}/none/evaluation/cot.json"),
        (["summarize", "--out", "{tmp}/out.json"], "--vanilla, --cot or --coconut"),
    ],
)
def test_mistakes_get_one_message_and_write_nothing(tmp_path, capsys, arguments, expected):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and expected.format(tmp=tmp_path) in message
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "mine.txt").read_text() == "precious"


def test_paths_are_expanded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PLACE", "~/place")
    monkeypatch.delenv("UNSET", raising=False)
    counts = ["--train", "2", "--val", "1", "--test", "1", "--kinds", "tile"]
    assert main(["prepare", "scenes", "--out", "$PLACE/scenes", *counts]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert (tmp_path / "home" / "place" / "scenes" / "aokvqa_v1p0_val.json").exists()
    for arguments in (["prepare", "scenes", "--out", "$UNSET/x"], ["plan", "~no_such_user/run.yaml", "--gpus", "1"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert re.search("UNSET is not set|no user 'no_such_user'", capsys.readouterr().err)


def commands(own: argparse.ArgumentParser, *before: str) -> list[tuple[list[str], argparse.ArgumentParser]]:
    """The words of every command, those of `prepare` too, and its parser."""
    found = []
    for action in own._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, parser in action.choices.items():
                found += [([*before, name], parser), *commands(parser, *before, name)]
    return found


@pytest.mark.parametrize(
    ("words", "own"), [pytest.param(*found, id=" ".join(found[0])) for found in commands(parser())]
)
def test_every_command_has_an_example_that_it_would_take(words, own):
    text = " ".join(own.format_help().split())
    example = shlex.split(own.epilog.removeprefix("example: multicoco "))
    assert own.epilog.startswith("example: multicoco ") and " ".join(own.epilog.split()) in text
    assert example[: len(words)] == words
    assert parser().parse_args(example).run


@pytest.mark.parametrize("own", [pytest.param(own, id=" ".join(words)) for words, own in commands(parser())])
def test_every_argument_says_what_it_is(own):
    told = [action for action in own._actions if not isinstance(action, argparse._SubParsersAction)]
    assert not [action.dest for action in told if not action.help]


def test_help_answers_at_once():
    code = """
import sys
from multicoco.cli import main, parser
try:
    main(["--help"])
finally:
    heavy = {"torch", "gradio", "transformers", "deepspeed", "matplotlib", "pandas", "numpy"} & set(sys.modules)
    print(heavy or "light", resource.getrusage(resource.RUSAGE_SELF).ru_utime < 2, file=sys.stderr)
"""
    command = [sys.executable, "-c", f"import resource{code}"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and "usage: multicoco" in done.stdout
    assert done.stderr == "light True\n"
