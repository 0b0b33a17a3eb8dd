"""Sources of examples: one file for each form that records come in, and what reads files of them."""

from multicoco.data.sources.load import load_examples, require_answers, require_steps
from multicoco.data.sources.of_run import load_of_run, read_of_run

__all__ = ["load_examples", "load_of_run", "read_of_run", "require_answers", "require_steps"]
