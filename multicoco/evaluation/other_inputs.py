"""Whose input is put in a question's place, where another one is asked for: one that is really another."""

from collections.abc import Sequence

from multicoco.data.example import Example
from multicoco.data.features import images_key
from multicoco.data.verified import content_of, digest_of
from multicoco.interventions import choose_donors


def other_inputs(seed: int, examples: Sequence[Example]) -> list[int | None]:
    """For each question another one with other images or, of those without images, with another text.

    Images are other ones if their files' contents are: a data set may hold a picture as often as it asks about it.
    Reads all of them.

    Returns: places among the examples, as `interventions.choose_donors` draws them; None where there is none.

    Raises:
        UserError: an image cannot be read.
    """
    shown = [
        images_key([digest_of(content_of(image)) for image in example.images])
        if example.images
        else " ".join(example.conversation.split())
        for example in examples
    ]
    return choose_donors(seed, [example.id for example in examples], [bool(e.images) for e in examples], shown)
