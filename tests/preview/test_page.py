"""What is shown is what the trainer and the evaluator make of the same records."""

import json
import re

import pytest
from homes import make_home

from multicoco.cli import main
from multicoco.config import load_config
from multicoco.data.sources import load_of_run
from multicoco.errors import UserError
from multicoco.methods import method_class
from multicoco.preview import preview
from multicoco.preview.measured import evenly, measure, set_up, typical
from multicoco.preview.page import evenly_spaced

COCONUT = """\
mode: coconut_train
num_epochs: 4
batch_size: 4
coconut: {enabled: true, c_thought: 2, max_latent_stage: 2, first_stage: 0}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("preview"), 10, 4, COCONUT)


def shown(home, *overrides: str, n: int = 100) -> str:
    return "\n".join(preview(load_config(home / "run.yaml", overrides), n, colours=False))


def test_rows_of_every_stage_are_those_that_are_trained(home):
    config = load_config(home / "run.yaml")
    text = shown(home)
    assert "10 records: 10 examples, 0 bad" in text and "stages (4 of 4 shown; an example may have any number" in text
    setup = set_up(config)
    method = method_class("coconut")(config, setup.latent)
    examples = json.loads((home / "scenes" / config.train_path).read_text())
    assert setup.trained is not None and len(examples) == 10
    for stage in range(4):
        block = re.search(rf"stage {stage}, record '(.*?)', (\d+) tokens:\n(.*?)(?=\nstage|\n\n)", text, re.DOTALL)
        assert block is not None
        name, n_tokens, row = block.groups()
        (record,) = [record for record in examples if record["question_id"] == name]
        assert record["question"] in row and f"Answer: {record['choices'][record['correct_choice_idx']]}" in row
        assert row.count("<|latent|>") == 2 * min(stage, 2)
        assert (record["rationales"][0].split(". ")[0] in row) == (stage == 0)
        (line,) = re.findall(rf"\n  {stage} +(\d)-\d +(\d+) +(\d+) +([\d.]+) +(\d+)", text)
        assert line[1] == str(method.passes(stage)) and int(line[2]) >= int(n_tokens) and line[4] == "0"


def test_numbers_that_are_judged_as_texts_are_told(home, tmp_path):
    records = [
        {"question": "How many?", "answer": answer, "steps": ["So."]} for answer in ("1,234", "$5", "two", "5 cats")
    ]
    (tmp_path / "text.json").write_text(json.dumps(records))
    keys = (f"data_dir={tmp_path}", "train_path=text.json", "val_path=null")
    told = "2 answers, such as '1,234', are judged as texts: answer_type: number reads numbers"
    assert told in shown(home, *keys)
    (tmp_path / "text.json").write_text(json.dumps(records[:2]))
    assert "are judged as texts" not in shown(home, *keys, "answer_type=number") + shown(home)


def test_what_a_method_makes_of_an_example_besides_is_shown(home):
    text = shown(home, "mode=train", "method=codi", "coconut.first_stage=null", n=2)
    row, teacher = re.search(
        r"stage 3, record .*?, \d+ tokens:\n(.*?)\nstage 3, record (.*)\n\n", text, re.DOTALL
    ).groups()
    assert "as its teacher" in teacher and "<|latent|>" not in teacher and row.count("<|latent|>") == 4
    assert teacher.count("loss") == 1 and teacher.split("loss")[1].count("\\n") == 3  # the steps, then the answer
    for reads, n_read in (("all", 2), ("last", 1)):
        text = shown(home, "mode=train", "method=sim_cot", f"sim_cot.reads={reads}", "coconut.uniform_prob=0.4", n=2)
        blocks = re.findall(
            r"stage 2, record .*?, as the decoder reads latent step (\d), (\d+) tokens:\n(.*?)(?=\nstage|\n\n)",
            text,
            re.DOTALL,
        )
        assert [block[0] for block in blocks] == ["1", "2"]
        for _, _, row in blocks:
            assert row.count("<|latent|>") == n_read and row.count("loss") == 1 and row.count("go to") == 1
    assert ", as " not in shown(home, n=2).split("val_path")[0]


def test_data_from_which_nothing_is_learned_end_with_an_error(home, tmp_path):
    records = json.loads((home / "scenes" / "aokvqa_v1p0_train.json").read_text())
    for record in records:
        record["rationales"] = []
    (tmp_path / "stepless.json").write_text(json.dumps(records))
    settings = ["mode=train", "coconut.first_stage=null", f"image_dir={home / 'scenes'}"]
    for method in ("codi", "sim_cot", "c_mtp"):
        with pytest.raises(UserError, match=f"none of 10 records has written steps, from which {method} learns"):
            shown(home, *settings, f"method={method}", f"train_path={tmp_path / 'stepless.json'}", n=2)
    for record in records[:3]:
        record["correct_choice_idx"] = record["direct_answers"] = None
    (tmp_path / "test.json").write_text(json.dumps(records))
    with pytest.raises(UserError, match="3 of 10 records have no answer to learn"):
        shown(home, *settings, "method=coconut", f"train_path={tmp_path / 'test.json'}", n=2)


def test_a_stages_row_is_that_of_most_records_where_some_are_drawn_for_others(home):
    text = shown(home, "coconut.uniform_prob=0.4", "num_epochs=3")
    rows = [block.count("<|latent|>") for block in re.split(r"stage \d, record", text.split("val_path")[0])[1:]]
    assert rows == [0, 2, 4]


def test_a_run_that_is_to_start_from_one_that_is_not_there_yet(home):
    later = f"load_model_path={home}/runs/cot"
    assert shown(home, later) == shown(home)
    with pytest.raises(UserError, match=r"cot' cannot be loaded: .*no such folder is here"):
        shown(home, later, "mode=eval_only", "eval_config.coconut=true")


def test_questions_are_those_that_are_asked(home):
    asked = shown(home).split("val_path")[1]
    assert "4 records: 4 examples" in asked and "as coconut asks record" in asked
    assert asked.count("<|latent|>") == 4  # stage 3 has as many as stage 2
    assert "Answer:" not in asked and "loss" not in asked
    both = shown(home, "eval_config.vanilla=true", "eval_config.coconut=true", n=2)
    assert "as vanilla asks" in both and "as coconut asks" in both and "tokens, of 2 of 10 examples" in both


def test_a_conversation_is_trained_on_and_asked_with_its_earlier_turns(home, tmp_path):
    texts = ["<image>\nIs it red?", "It is blue.", "And now?", "<think>I go on. It is red.</think>It is red."]
    turns = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(texts)]
    picture = next((home / "scenes").rglob("*.png"))
    record = {"id": "c", "image": str(picture.relative_to(home / "scenes")), "conversations": turns}
    (tmp_path / "c.json").write_text(json.dumps([record, record | {"conversations": [turns[0], turns[3]]}]))
    asked = ("eval_config.vanilla=true", "eval_config.cot=true", "eval_config.coconut=true")
    paths = (f"train_path={tmp_path}/c.json", f"val_path={tmp_path}/c.json", f"image_dir={home}/scenes")
    trained, *questions = shown(home, *paths, *asked).split("\nas ")
    assert "earlier turns per example, read without their reasoning and not learned: 0 to 1" in trained
    rows = re.findall(r"record 'c', \d+ tokens:\n(.*?)(?=\nstage|\n\n)", trained, re.DOTALL)
    assert len(rows) == 4 and [text.split(" ")[0] for text in questions] == ["coconut", "cot", "vanilla"]
    for row in rows + questions:
        first, *others = (row.find(text) for text in ("<img>", "Is it red?", "It is blue.", "And now?"))
        assert 0 < first < others[0] < others[1] < others[2] and row.count("<img>") == 1
        learned = row[row.find("  loss") :] if "  loss" in row else ""
        assert "It is blue." not in learned
    assert "Answer: It is red." in rows[0] and "I go on." in rows[0] and "I go on." not in rows[3]


def test_a_run_that_only_evaluates(home):
    text = shown(home, "mode=eval_only", "coconut.enabled=false", "eval_config.cot=true")
    assert "train_path" not in text and "as cot asks record" in text


def test_what_is_cut_and_bad_is_said_and_ends_with_an_error_if_the_run_would(home, tmp_path):
    records = json.loads((home / "scenes" / "aokvqa_v1p0_train.json").read_text())
    records[1]["choices"], records[3]["question"] = [], None
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(records))
    overrides = [f"train_path={bad}", f"image_dir={home / 'scenes'}", "max_train_samples=5"]
    text = shown(home, *overrides, "on_bad_record=skip")
    assert "10 records: 5 examples, 2 bad, the other 3 not read (limit 5)" in text
    assert re.search(r"  record 1 \(id .*'choices'", text) and re.search(r"  record 3 .*'question'", text)
    lines: list[str] = []
    with pytest.raises(UserError, match="2 bad records, at which the run stops"):
        for line in preview(load_config(home / "run.yaml", overrides), 100, colours=False):
            lines.append(line)
    assert "stage 3, record" in "\n".join(lines) and any("val_path" in line for line in lines)  # all else comes first


def test_what_is_too_long_for_the_model_is_counted(home, monkeypatch):
    monkeypatch.setattr("multicoco.preview.measured.position_limit", lambda model: 10)
    text = shown(home, "too_long=skip")
    assert "an example may have at most 10 tokens" in text
    assert re.search(r"\n  0 +0-0 +1 +\d+ +[\d.]+ +10\n", text)
    assert "10 of 10 examples are too long in some stage, left out of all stages" in text
    assert "4 of 4 leave no room for 128 new tokens, the model takes 10 in all" in text


def test_what_is_longer_than_max_length_is_counted_and_ends_with_an_error_if_the_run_would(home):
    [longest] = re.findall(r"\n  0 +0-0 +1 +(\d+)", shown(home))
    assert "too long in some stage" not in shown(home, f"max_length={longest}")
    shorter = f"max_length={int(longest) - 1}"
    text = shown(home, shorter, "too_long=skip")
    [left_out] = map(int, re.findall(r"(\d+) of 10 examples are too long in some stage, left out of all stages", text))
    assert 0 < left_out <= 10 and "are asked whole" not in text
    lines: list[str] = []
    with pytest.raises(UserError, match=f"{left_out} examples are too long, at which the run stops"):
        for line in preview(load_config(home / "run.yaml", [shorter]), 100, colours=False):
            lines.append(line)
    assert any("stage 3, record" in line for line in lines)
    assert "4 of 4 are longer than max_length, 5, and are asked whole" in shown(home, "max_length=5", "too_long=skip")


def test_the_command(home, capsys, monkeypatch):
    assert main(["data", str(home / "run.yaml"), "--examples", "3"]) == 0
    out = capsys.readouterr().out
    assert "tokens, of 3 of 10 examples" in out and "\x1b" not in out
    assert main(["data", str(home / "run.yaml"), "--set", f"model_id={home / 'none'}"]) == 1
    assert "none" in capsys.readouterr().err


def test_many_stages_are_shown_evenly():
    assert evenly_spaced(range(5), 12) == [0, 1, 2, 3, 4]
    some = evenly_spaced(range(100), 12)
    assert len(some) == 12 and (some[0], some[-1]) == (0, 99)


def test_some_examples_stand_for_all(home):
    assert evenly(3, range(10)) == [0, 3, 6] and evenly(20, range(10)) == list(range(10))
    config = load_config(home / "run.yaml")
    setup = set_up(config)
    measured = measure(load_of_run(config, config.train_path, None), setup, setup.trained)
    steps = sorted(len(one.example.steps) for one in measured)
    assert len(typical(measured).example.steps) == steps[len(steps) // 2]
    assert all(0 < one.image_tokens < len(one.tokens.prompt) for one in measured)


def test_padding_is_shown_as_shuffled_and_as_grouped(home):
    table = shown(home).split("padding in batches of 4")[1].splitlines()
    assert table[1].split() == ["stage", "group_by_length:", "false", "group_by_length:", "true"]
    rows = [line.replace("%", "").split() for line in table[2:6]]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert all(0 <= float(share) < 60 for row in rows for share in row[1:])
