"""Training methods: what an example looks like at a stage, how many passes that takes, what a thought is, the loss.

One file a method, named in `multicoco.registry`. No torch at import: configs are read without it.
"""

from multicoco.config.section import MethodKeys
from multicoco.methods.method import Method, Part, evaluated_methods, method_class, stands_for, thinking_method

__all__ = ["Method", "MethodKeys", "Part", "evaluated_methods", "method_class", "stands_for", "thinking_method"]
