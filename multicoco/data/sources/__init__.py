"""Sources of examples: one file for each form that records come in, and what reads files of them."""

from multicoco.data.sources.load import load_examples, require_answers, require_steps

__all__ = ["load_examples", "require_answers", "require_steps"]
