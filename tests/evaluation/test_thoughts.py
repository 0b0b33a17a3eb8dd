import math
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from multicoco.errors import UserError
from multicoco.evaluation.thoughts import GoldWord, Norms, Position, Thoughts, TopWord, read_thoughts

NAN = math.nan
# of three questions with two, no and one thought
THOUGHTS = Thoughts(
    about={"mode": "coconut", "stage": 2, "intervention": None, "c_thought": 2},
    questions=("a", "b", "ü"),
    words={3: " red", 4: '"\u2028', 5: "blue"},
    embedding=Norms(1.5, {0.0: 1.0, 0.5: 1.25, 1.0: 2.0}),
    first=np.array([0, 2, 2, 3]),
    step=np.array([1, 0, 1]),
    norm=np.array([1.0, 2.0, 3.0]),
    top_ids=np.array([[3, 4], [5, 3], [4, 5]]),
    top_probabilities=np.array([[0.5, 0.25], [0.75, 0.125], [0.5, 0.5]]),
    cosines=np.array([[1.0, 0.5], [0.5, 1.0], [1.0, NAN]]),
    gold_first=np.array([0, 2, 2, 3]),
    gold_ids=np.array([5, 3, 4]),
    gold_ranks=np.array([7, 1, 2]),
    n=np.array([2, 1]),
    effective_rank=np.array([1.5, 1.0]),
    mean_similarity=np.array([0.25, NAN]),
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "final_coconut.safetensors"
    path.write_bytes(THOUGHTS.to_bytes())
    return path


def test_what_is_written_is_read(file):
    found = read_thoughts(file)
    assert (found.about, found.questions, found.words, found.embedding) == (
        THOUGHTS.about, THOUGHTS.questions, THOUGHTS.words, THOUGHTS.embedding,
    )  # fmt: skip
    for name in ("first", "step", "norm", "top_ids", "top_probabilities", "cosines", "gold_first", "gold_ids", "n"):
        np.testing.assert_array_equal(getattr(found, name), getattr(THOUGHTS, name))
    assert found.position.tolist() == [1, 2, 1]


def test_the_thoughts_of_a_question(file):
    first, second = read_thoughts(file).of("a")
    assert (first.position, first.step, first.norm, first.cosines) == (1, 1, 1.0, (1.0, 0.5))
    assert first.top == (TopWord(3, " red", 0.5), TopWord(4, '"\u2028', 0.25))
    assert first.gold == (GoldWord(5, "blue", 7), GoldWord(3, " red", 1))
    assert (second.position, second.step, second.gold) == (2, None, ())
    assert read_thoughts(file).of("b") == ()
    [only] = read_thoughts(file).of("ü")
    assert only.cosines == (1.0,) and only.gold == (GoldWord(4, '"\u2028', 2),)
    with pytest.raises(KeyError):
        read_thoughts(file).of("c")


def test_the_thoughts_of_all_questions_by_position(file):
    first, second = read_thoughts(file).positions
    assert first == Position(1, 2, 1.5, 0.25)
    assert (second.position, second.n, second.effective_rank) == (2, 1, 1.0) and math.isnan(second.mean_similarity)


def test_other_files_are_refused_by_name(tmp_path, file):
    other = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(2)}, other)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-8])
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    for path in (other, cut, empty, tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(UserError, match="no thoughts can be read from it") as caught:
            read_thoughts(path)
        assert str(path) in str(caught.value)


def test_reading_needs_no_torch():
    code = "import sys, multicoco.evaluation.thoughts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
