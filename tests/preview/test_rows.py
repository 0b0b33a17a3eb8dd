import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from multicoco.curriculum import IGNORE_INDEX, ExampleTokens, LatentTokens, layout
from multicoco.models.tiny import build_tokenizer
from multicoco.preview.rows import segments, show_row

LATENT = LatentTokens(90, 91, 92)


def test_parts_of_a_row():
    tokens = ExampleTokens([1, 2], [[3], [4]], [5, 6])
    ids, labels = layout(tokens, 1, LATENT.block(2))
    assert segments(ids, labels, LATENT) == [("prompt", [1, 2]), ("latent", [90, 91, 91, 92]), ("loss", [4, 5, 6])]
    assert segments(*layout(tokens, 0, ()), None) == [("prompt", [1, 2]), ("loss", [3, 4, 5, 6])]
    labels[-2] = IGNORE_INDEX
    assert segments(ids, labels, LATENT)[2:] == [("loss", [4]), ("written", [5]), ("loss", [6])]


@given(st.lists(st.tuples(st.integers(0, 95), st.booleans()), max_size=30))
def test_parts_are_the_row(row):
    ids = [token for token, _ in row]
    labels = [token if learned else IGNORE_INDEX for token, learned in row]
    parts = segments(ids, labels, LATENT)
    assert [token for _, part in parts for token in part] == ids
    assert sum(len(part) for kind, part in parts if kind == "loss") == sum(learned for _, learned in row)
    assert all(before[0] != after[0] for before, after in pairwise(parts))


def test_what_is_shown_is_what_the_tokenizer_writes():
    tokenizer = build_tokenizer(["What is it? A cat.\n"] * 9, vocab_size=300)
    image = tokenizer.context_image_token_id
    encoded = tokenizer.encode("What?\nA cat.", add_special_tokens=False)
    ids = [*[image] * 9, *encoded, *encoded]
    labels = [*[IGNORE_INDEX] * (len(ids) - len(encoded)), *encoded]
    plain = [*show_row(ids, labels, None, tokenizer, colours=False)]
    assert plain == [
        "  prompt  [<IMG_CONTEXT> x 9]What?\\n",
        "          A cat.",
        "  loss    What?\\n",
        "          A cat.",
    ]
    coloured = [*show_row(ids, labels, None, tokenizer, colours=True)]
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in coloured] == plain
    assert coloured[0].count("\x1b[2m") == 1 and coloured[2].count("\x1b[32m") == 1
