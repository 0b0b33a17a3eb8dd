"""Official scores against the data sets' own programs, from checkouts of github.com/allenai/aokvqa and
github.com/lupantech/ScienceQA whose folders AOKVQA and SCIENCEQA name."""

import importlib.util
import json
import os
import random
import sys
from pathlib import Path

import pytest
from PIL import Image

from multicoco.config import RunConfig
from multicoco.data.sources import load_examples, load_of_run
from multicoco.evaluation.metrics import official_predictions, official_scores

WORDS = ("cat", "dog", "a dog", "Dog", "puppy", "two cats")
SUBJECTS = ("natural science", "social science", "language science")


def program(variable: str, path: str):
    """A module of a checkout."""
    if variable not in os.environ:
        pytest.skip(f"{variable} names no checkout")
    checkout = Path(os.environ[variable])
    sys.path.insert(0, str(checkout))
    spec = importlib.util.spec_from_file_location(f"original_{variable}", checkout / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(checkout))
    return module


@pytest.mark.parametrize("openly", [False, True])
def test_aokvqa(tmp_path, openly):
    original, draw = program("AOKVQA", "evaluation/eval_predictions.py"), random.Random(0)
    Image.new("RGB", (8, 8)).save(tmp_path / "000000000001.png")
    records = [
        {
            "split": "val",
            "image_id": 1,
            "question_id": f"q{place}",
            "question": "What is it?",
            "choices": draw.choices(WORDS, k=4),
            "correct_choice_idx": draw.randrange(4),
            "direct_answers": draw.choices(WORDS, k=10),
            "difficult_direct_answer": draw.random() < 0.3,
            "rationales": ["It barks.", "It is a pet.", "It has ears."],
        }
        for place in range(500)
    ]
    (tmp_path / "val.json").write_text(json.dumps(records))
    keys = {"mode": "eval_only", "name": "run", "model_id": "model", "eval_config": {"cot": True}}
    config = RunConfig(**keys, data_dir=str(tmp_path), val_path="val.json", direct_answers=openly)
    examples = load_of_run(config, config.val_path, None)
    if openly:
        samples = [{"extracted": word and word.lower(), "said": word} for word in draw.choices((*WORDS, None), k=500)]
    else:
        samples = [{"extracted": place, "said": None} for place in draw.choices((0, 1, 2, 3, None), k=500)]
    setting = "direct_answer" if openly else "multiple_choice"
    said = {name: answer[setting] for name, answer in official_predictions(samples, examples)["aokvqa"].items()}
    theirs = original.eval_aokvqa(records, said, multiple_choice=not openly, strict=False)
    assert official_scores(samples, examples)[f"aokvqa/{setting}"] == pytest.approx(theirs / 100)


def test_scienceqa(tmp_path):
    original, draw = program("SCIENCEQA", "tools/evaluate_acc.py"), random.Random(0)
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    problems = {
        str(place): {
            "question": "Which?",
            "choices": ["yes", "no", "yes"],
            "answer": draw.randrange(3),
            "hint": draw.choice(("", "A hint.")),
            "image": draw.choice((None, "image.png")),
            "subject": draw.choice(SUBJECTS),
            "topic": draw.choice(("biology", "verbs")),
            "grade": f"grade{draw.randint(1, 12)}",
            "split": "test",
            "solution": "So.",
        }
        for place in range(4241)  # as many as its program wants
    }
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    examples = load_examples(tmp_path / "problems.json", tmp_path)
    extracted = draw.choices((0, 1, 2, None), k=len(examples))
    samples = [{"extracted": place, "said": None} for place in extracted]
    (tmp_path / "results.json").write_text(json.dumps(official_predictions(samples, examples)["scienceqa"]))
    theirs = original.get_scores(tmp_path / "results.json", tmp_path / "problems.json")
    ours = official_scores(samples, examples)
    shared = {
        key: float(theirs[f"acc_{key}"]) for key in (name.partition("/")[2] for name in ours) if f"acc_{key}" in theirs
    }
    assert len(shared) == 9 + 2  # of topics
    assert shared == {key: pytest.approx(100 * ours[f"scienceqa/{key}"], abs=0.006) for key in shared}
