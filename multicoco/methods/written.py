"""The two methods without thoughts: the answer alone (vanilla), and written reasoning in front of it (CoT)."""

from multicoco.methods.method import Method


class Vanilla(Method):
    """Question, answer: the prompt ends with the answer's prefix, so the model can do nothing but answer."""

    asked = "answer"


class Cot(Method):
    """Question, all of the written steps, answer (Wei et al. 2022, arXiv:2201.11903)."""
