import json

from pages import write_answers, write_questions, write_touched, write_training

from multicoco.report.answers import make_table, read_answers
from multicoco.report.evaluated import answer_charts
from multicoco.report.examples import read_examples
from multicoco.report.folder import read_run
from multicoco.report.pictures import Thumbnails


def table_of(*runs, pictures=None, **options):
    read = [read_run(run) for run in runs]
    examples = {key: example for run in read for key, example in read_examples(run).items()}
    answered = [one for run in read for one in read_answers(run, run.name)]
    return make_table(answered, examples, pictures or Thumbnails(), **options)


def test_evaluations_of_the_same_questions_stand_side_by_side(tmp_path):
    write_questions(tmp_path, 4, with_pictures=False)
    first = write_answers(write_training(tmp_path / "runs" / "a"), "cot", [True, True, False, None])
    second = write_answers(tmp_path / "runs" / "b", "coconut", [True, False, True, True])
    table = table_of(first, second)
    assert table.content["evaluations"] == ["a", "b"]
    assert [q["id"] for q in table.content["questions"]] == ["q0", "q1", "q2", "q3"]
    assert [[a["r"] for a in q["e"]] for q in table.content["questions"]] == [[1, 1], [1, 0], [0, 1], [0, 1]]
    assert table.content["questions"][3]["e"][0]["x"] is None
    assert table.flips == [("a", "b", 1, 2, 4)]
    assert table.content["questions"][2]["s"] == ["step 0 of 2", "step 1 of 2", "step 2 of 2"]


def test_questions_with_the_same_id_and_another_text_are_two(tmp_path):
    first = write_answers(tmp_path / "a", "cot", [True])
    second = write_answers(tmp_path / "b", "cot", [True], question="Another one?")
    assert [q["e"].count(None) for q in table_of(first, second).content["questions"]] == [1, 1]


def test_answers_to_questions_without_a_known_answer_are_there(tmp_path):
    run = write_answers(tmp_path / "a", "cot", [True, False])
    path = run / "samples" / "final_cot.jsonl"
    unknown = {
        "id": "u",
        "question": "?",
        "choices": [],
        "gold": None,
        "correct": None,
        "extracted": "x",
        "generated": "x",
    }
    path.write_text(path.read_text() + json.dumps(unknown) + "\n")
    questions = table_of(run).content["questions"]
    assert [q["id"] for q in questions] == ["q0", "q1", "u"] and questions[2]["e"][0]["r"] is None


def test_room_goes_to_questions_that_are_not_all_right_first(tmp_path):
    write_questions(tmp_path, 8)
    run = write_answers(write_training(tmp_path / "runs" / "a"), "cot", [place != 6 for place in range(8)])
    one = table_of(run).content["pictures"][0]
    table = table_of(run, pictures=Thumbnails(len(one) + 20))
    assert [bool(q["i"]) for q in table.content["questions"]] == [place == 6 for place in range(8)]
    assert table.notes == [
        "6 pictures are left out, there is room for 0 MB; those of questions that not all answer correctly came first"
    ]
    short = table_of(run, room=1)
    assert [q["id"] for q in short.content["questions"]] == ["q6"]
    assert short.notes[0].startswith("7 of 8 questions are left out")


def test_a_picture_that_is_broken_is_counted(tmp_path):
    write_questions(tmp_path, 2)
    (tmp_path / "1.png").write_bytes(b"none")
    run = write_answers(write_training(tmp_path / "runs" / "a"), "cot", [True, True])
    table = table_of(run)
    assert table.notes == ["1 pictures could not be read"] and len(table.content["pictures"]) == 1


def test_without_the_questions_file_the_answers_are_shown_and_it_is_said(tmp_path):
    run = read_run(write_answers(write_training(tmp_path / "runs" / "a"), "cot", [True]))
    assert read_examples(run) == {}
    assert "without pictures and written steps" in run.problems[0] and "val.json" in run.problems[0]


def test_groups_are_those_in_which_questions_differ(tmp_path):
    write_questions(tmp_path, 6, with_pictures=False)
    run = read_run(write_answers(write_training(tmp_path / "runs" / "a"), "cot", [True] * 6))
    answered = read_answers(run)
    table = make_table(answered, read_examples(run), Thumbnails())
    assert table.content["groups"] == {"number of written steps": ["1", "2", "3"]}
    [chart] = answer_charts(answered, table)
    assert chart.title == "Accuracy by number of written steps" and "3 (n = 2)" in chart.svg


def test_calibration_compares_the_likeliest_choices_chance_with_how_often_it_is_right(tmp_path):
    sure = {"choice_logprobs": [-0.1054, -2.3026]}  # 0.9 and 0.1
    run = read_run(write_answers(tmp_path / "a", "cot", [True] * 4, **sure))
    [chart] = answer_charts(read_answers(run), table_of(tmp_path / "a"))
    assert chart.title == "Calibration" and "cot (error 0.100)" in chart.svg


def test_an_intervention_is_held_against_its_own_run_though_another_has_the_same_name(tmp_path):
    runs = [tmp_path / folder / "eval" for folder in "ab"]
    for run, right in zip(runs, (True, False), strict=True):
        write_answers(run, "coconut", [right, True])
        write_touched(run, "coconut", "only-2-zero", "only(2, zero)", [True, False], gold_logprob=-1.234)
    table = table_of(*runs)
    at = {"how": "only(2, zero)", "at": 2}
    assert table.content["touched"] == [None, {"of": 0, **at}, None, {"of": 2, **at}]
    assert [flip[2:] for flip in table.flips] == [(1, 0, 2), (1, 0, 2), (1, 1, 2)]
    assert [q["no"] for q in table.content["questions"]] == [1, 2]
    assert "gold" not in table.content["questions"][0]["e"][0]
    assert table.content["questions"][0]["e"][1]["gold"] == -1.23
    alone = table_of(write_touched(tmp_path / "c", "coconut", "mean", "mean", [True])).content
    assert alone["touched"] == [None]


def test_thoughts_that_cannot_be_read_are_named(tmp_path):
    path = write_answers(tmp_path / "a", "coconut", [True])
    (path / "thoughts").mkdir()
    (path / "thoughts" / "final_coconut.safetensors").write_text("{broken")
    run = read_run(path)
    assert [one.thoughts for one in read_answers(run)] == [None]
    assert "final_coconut.safetensors" in run.problems[0]
