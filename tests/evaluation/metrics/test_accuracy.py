import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicoco.evaluation.metrics import summarize, wilson_interval


@pytest.mark.parametrize(
    ("correct", "n", "expected"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0000, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_published_values(correct, n, expected):
    assert wilson_interval(correct, n) == pytest.approx(expected, abs=5e-5)


@given(n=st.integers(1, 500), data=st.data())
def test_interval_holds_the_proportion_and_narrows(n, data):
    correct = data.draw(st.integers(0, n))
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n + 1e-12 and correct / n - 1e-12 <= high <= 1
    assert (low == 0) == (correct == 0) and (high == 1) == (correct == n)
    wider, narrower = high - low, wilson_interval(4 * correct, 4 * n)
    assert narrower[1] - narrower[0] < wider


def sample(correct, choices=4, **fields) -> dict:
    return {
        "correct": correct,
        "choices": ["x"] * choices,
        "question": "What is it?",
        "gold": 0 if choices else "x",
        "extracted": 0,
        "new_tokens": 2,
        "latent_passes": 1,
    } | fields


def test_summary():
    samples = [
        sample(True),
        sample(False, new_tokens=5),
        sample(None, choices=2, latent_passes=4, extracted=None, truncated=True),
    ]
    summary = summarize(samples)
    assert summary["n"] == 2 and summary["accuracy"] == 0.5
    assert summary["ci95"] == list(wilson_interval(1, 2))
    assert summary["chance"] == pytest.approx((0.25 + 0.25 + 0.5) / 3)
    assert (summary["mean_new_tokens"], summary["mean_latent_passes"]) == (3, 2)
    assert (summary["n_unparsed"], summary["n_truncated"]) == (1, 1)


def test_nothing_known_has_no_accuracy():
    summary = summarize([sample(None, choices=0)])
    assert (summary["accuracy"], summary["n"], summary["ci95"], summary["chance"]) == (None, 0, [0.0, 1.0], None)
    assert summarize([])["mean_new_tokens"] is None
