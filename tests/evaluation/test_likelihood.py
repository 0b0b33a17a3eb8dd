"""Which choice is the likeliest, and what a summary makes of it."""

import math

from multicoco.evaluation.likelihood import likeliest, summarize_likelihoods


def test_the_likeliest_is_the_first_of_equals_and_none_among_what_is_no_number():
    assert likeliest([-3.0, -1.0, -1.0]) == 1
    assert likeliest([-math.inf, -math.inf]) == 0
    for overflown in ([math.nan, math.nan], [-1.0, math.nan], [math.nan, -1.0]):
        assert likeliest(overflown) is None
    samples = [
        {"gold_logprob": choices[0], "choice_logprobs": choices, "gold": 0}
        for choices in ([-1.0, -2.0], [math.nan] * 2)
    ]
    assert summarize_likelihoods(samples)["likelihood_accuracy"] == 0.5
