"""What is made of marked answers: accuracy, and the official scores of data sets, one file each."""

from multicoco.evaluation.metrics.accuracy import summarize, wilson_interval
from multicoco.evaluation.metrics.metric import official_predictions, official_scores

__all__ = ["official_predictions", "official_scores", "summarize", "wilson_interval"]
