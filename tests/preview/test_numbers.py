from hypothesis import given
from hypothesis import strategies as st

from multicoco.preview.numbers import histogram


def test_few_values_have_a_bar_each():
    assert [*histogram("steps", [1, 1, 3, 1])] == [
        "steps: 1 to 3, median 1, mean 1.5",
        "              1        3 ########################################",
        "              2        0",
        "              3        1 ##############",
    ]
    assert [*histogram("images", [1, 1])] == ["images: 1 to 1, median 1, mean 1.0"]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=50))
def test_every_value_is_in_one_span(values):
    heading, *bars = histogram("x", values)
    assert f"{min(values)} to {max(values)}" in heading
    assert len(bars) <= 10
    found = [bar.split() for bar in bars]
    for span, count, *_ in found:
        first, _, last = span.partition("-")
        assert int(count) == sum(int(first) <= value <= int(last or first) for value in values)
    assert not bars or sum(int(count) for _, count, *_ in found) == len(values)
