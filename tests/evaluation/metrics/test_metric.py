from multicoco.data.example import Example
from multicoco.data.sources import load_examples
from multicoco.evaluation.metrics import official_predictions, official_scores
from multicoco.evaluation.metrics.metric import mean
from multicoco.registry import names


def test_a_mixture_has_the_scores_of_each_of_its_sets():
    chosen = Example("a", "Q?", (), ("x", "y"), (), "x", 0, metric="aokvqa")
    counted = Example("b", "Q?", (), (), (), "5", None, judge="number", metric="gsm8k")
    other = Example("c", "Q?", (), (), (), "z", None)
    samples = [{"extracted": 0, "said": None}, {"extracted": "5", "said": "5"}, {"extracted": "z", "said": "z"}]
    scores = official_scores(samples, [chosen, counted, other])
    assert {key: value for key, value in scores.items() if not key.endswith("_n")} == {
        "aokvqa/multiple_choice": 1,
        "gsm8k/number_match": 1,
        "gsm8k/string_match": 1,
    }
    assert list(official_predictions(samples, [chosen, counted, other])) == ["aokvqa"]


def test_nothing_has_no_mean():
    assert mean([]) is None and mean([1.0, 0.0]) == (0.5, 2)


def test_every_score_belongs_to_a_source(tmp_path):
    (tmp_path / "f.jsonl").write_text(
        '{"question": "Q?", "answer": "So.\\n#### 5"}\n'
        '{"question": "Q?", "choices": ["a", "b"], "answer": 0, "hint": "", "subject": "natural science"}\n'
        '{"question": "Q?", "answer": "5"}\n'
    )
    examples = load_examples(tmp_path / "f.jsonl", tmp_path)
    assert [example.metric for example in examples] == ["gsm8k", "scienceqa", None]
    assert examples[1].groups == {"subject": "natural science", "has_text": "false", "has_image": "false"}
    assert names("metrics") == ["aokvqa", "gsm8k", "scienceqa"]
