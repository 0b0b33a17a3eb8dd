"""Numbers as lines of text."""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean, median

_BARS = 40  # columns of the longest bar
_MOST_BINS = 10


def histogram(name: str, values: Sequence[int]) -> Iterator[str]:
    """A heading with the smallest, middle, mean and largest value, and a bar for each value or span of values."""
    low, high = min(values), max(values)
    yield f"{name}: {low} to {high}, median {median(values):g}, mean {fmean(values):.1f}"
    if low == high:
        return
    width = -(-(high - low + 1) // _MOST_BINS)
    counts = Counter((value - low) // width for value in values)
    for place in range((high - low) // width + 1):
        first, last = low + place * width, min(low + (place + 1) * width - 1, high)
        span = f"{first}" if first == last else f"{first}-{last}"
        bar = "#" * -(-counts[place] * _BARS // max(counts.values()))
        yield f"  {span:>13} {counts[place]:>8} {bar}".rstrip()
