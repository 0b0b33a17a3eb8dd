import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fake_runs import sample, write_run, write_samples
from hypothesis import given, settings
from hypothesis import strategies as st

from multicoco.errors import UserError
from multicoco.study.compare import compare, format_comparison, write_comparison
from multicoco.study.samples import read_evaluations, shared_questions


def test_a_run_gives_all_its_modes_or_the_one_that_is_named(tmp_path):
    run = write_run(tmp_path / "run", "cot", "++-?")
    write_run(run, "coconut", "+--?")
    assert [evaluation.name for evaluation in read_evaluations(str(run))] == [f"{run}:coconut", f"{run}:cot"]
    [cot] = read_evaluations(f"{run}:cot")
    assert [key for key, _ in cot.samples] == ["q0", "q1", "q2"] and cot.summary["mode"] == "cot"


def test_the_samples_are_those_of_the_newest_evaluation(tmp_path):
    run = tmp_path / "run"
    write_samples(run, "thoughts", [sample("q0", False)], "epoch_0001")
    write_samples(run, "thoughts", [sample("q0", True)], "epoch_0002")
    write_samples(run, "no_thoughts", [sample("q0", True, gold=1)], "final")
    [thoughts] = read_evaluations(f"{run}:thoughts")
    assert thoughts.samples["q0", 0] == sample("q0", True)
    (run / "samples" / "epoch_0002_thoughts.jsonl").unlink()
    with pytest.raises(UserError, match=r"thoughts\.json: no samples with its n and accuracy.*epoch_0001_thoughts"):
        read_evaluations(f"{run}:thoughts")


def test_questions_are_matched_by_their_ids_in_any_order(tmp_path):
    names = ["a", "b", "a"]  # a file may use an id twice
    choices = ["x", "y", "z"]
    one = [sample(name, i == 0, gold=i, choices=choices) for i, name in enumerate(names)]
    write_samples(tmp_path / "one", "cot", one)
    shuffled = [one[1] | {"correct": True}, one[0], one[2]]
    write_samples(tmp_path / "two", "cot", shuffled)
    shared = shared_questions([*read_evaluations(str(tmp_path / "one")), *read_evaluations(str(tmp_path / "two"))])
    assert [question["gold"] for question in shared.questions] == [0, 1, 2]
    assert shared.correct.tolist() == [[True, False, False], [True, True, False]]


def test_line_separators_in_answers_end_no_line(tmp_path):
    write_samples(tmp_path, "cot", [sample("q0", True, generated="a\u2028b\x85c"), sample("q1", False)])
    [cot] = read_evaluations(str(tmp_path))
    assert len(cot.samples) == 2


def test_runs_over_different_questions_are_refused_and_told_what_they_share(tmp_path):
    one, two = write_run(tmp_path / "one", "cot", "++++"), write_run(tmp_path / "two", "cot", "----", first=1)
    evaluations = [*read_evaluations(str(one)), *read_evaluations(str(two))]
    with pytest.raises(UserError, match=r"3 are shared, of 4 of .*one:cot, 4 of .*two:cot; --shared"):
        shared_questions(evaluations)
    shared = shared_questions(evaluations, only_shared=True)
    assert [question["id"] for question in shared.questions] == ["q1", "q2", "q3"]
    three = read_evaluations(str(write_run(tmp_path / "three", "cot", "++", first=9)))
    with pytest.raises(UserError, match="no question with a known answer is shared"):
        shared_questions([*evaluations, *three], only_shared=True)


@pytest.mark.parametrize("other", [{"question": "Else?"}, {"choices": ["a", "c"]}, {"gold": 1}])
def test_ids_that_mean_another_question_are_found(tmp_path, other):
    one, two = write_run(tmp_path / "one", "cot", "++"), write_run(tmp_path / "two", "cot", "++", **other)
    with pytest.raises(UserError, match="question 'q0' is not the same"):
        shared_questions([*read_evaluations(str(one)), *read_evaluations(str(two))], only_shared=True)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "jsonl:2: not valid JSON"),
        ("5", "jsonl:2: must be a JSON object"),
        (json.dumps({"id": "q1"}), "jsonl:2: .*question, choices, gold, correct missing"),
        (json.dumps(sample("q1", True) | {"correct": "yes"}), 'jsonl:2: .*correct is "yes"'),
        (json.dumps(sample("q1", True) | {"correct": 1}), "jsonl:2: .*correct is 1"),
        (json.dumps(sample("q1", True) | {"choices": None}), "jsonl:2: .*choices is null"),
        (json.dumps(sample("q1", True) | {"question": None}), "jsonl:2: .*question is null"),
        (json.dumps(sample("q1", True) | {"choices": [], "gold": 3}), "jsonl:2: .*gold is 3"),
        (json.dumps(sample("q1", True) | {"gold": 2}), "jsonl:2: .*gold is 2"),
        ("[" * 9999, "jsonl:2: not valid JSON"),
    ],
)
def test_damaged_samples_are_named(tmp_path, line, named):
    write_run(tmp_path, "cot", "++")
    (tmp_path / "samples" / "final_cot.jsonl").write_text(json.dumps(sample("q0", True)) + f"\n{line}\n")
    with pytest.raises(UserError, match=named):
        read_evaluations(str(tmp_path))


@pytest.mark.parametrize("accuracy", [float("nan"), float("inf"), "0.5", True, -0.5, [1]])
def test_an_accuracy_that_is_none_is_named(tmp_path, accuracy):
    write_run(tmp_path, "cot", "++")
    path = tmp_path / "evaluation" / "cot.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"accuracy": accuracy}))
    with pytest.raises(UserError, match=r"cot\.json: not an evaluation, accuracy is "):
        read_evaluations(str(tmp_path))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(st.characters(), max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["id", "question", "choices", "gold", "correct", "accuracy", "n"]), VALUES)
def test_whatever_a_field_holds_it_is_compared_or_refused_in_one_message_that_names_it(field, value):
    with TemporaryDirectory() as folder:
        good, bad = (write_run(Path(folder) / name, "cot", "+-") for name in ("good", "bad"))
        path = bad / ("evaluation/cot.json" if field in ("accuracy", "n") else "samples/final_cot.jsonl")
        first, *more = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps(json.loads(first) | {field: value}), *more]))
        try:
            comparison = compare([str(good), str(bad)], only_shared=True)
        except UserError as error:
            assert str(bad) in str(error) and "\n" not in str(error)
        else:
            format_comparison(comparison).encode("utf-8")
            write_comparison(comparison, Path(folder) / "out.json")
            assert comparison.evaluations[0].correct in (0, 1) and comparison.n in (1, 2)


def test_what_is_no_evaluated_run_is_named(tmp_path):
    write_run(tmp_path / "run", "cot", "++")
    with pytest.raises(UserError, match="no evaluation in"):
        read_evaluations(str(tmp_path / "none"))
    with pytest.raises(UserError, match="no evaluation 'vanilla': it has cot"):
        read_evaluations(f"{tmp_path / 'run'}:vanilla")
