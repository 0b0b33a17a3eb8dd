"""Questions of which a part is left out or is another's: what a data set can be answered by without it."""

from collections.abc import Sequence
from dataclasses import replace

from multicoco.config.evaluation import Inputs
from multicoco.data.example import Example
from multicoco.errors import UserError
from multicoco.evaluation.other_inputs import other_inputs


def asked_with(inputs: Inputs, examples: Sequence[Example], seed: int) -> Sequence[Example]:
    """The examples as they are asked; they are judged as they are.

    - all: as they are
    - question_only: without their images
    - choices_only: the choices alone, without question and images
    - other_image: with the images of another question, which are other ones; those without images as they are

    Raises:
        UserError: there is nothing to leave out, or no other image.
    """
    if inputs == "all":
        return examples
    if inputs == "choices_only":
        if (open_one := next((example for example in examples if not example.choices), None)) is not None:
            raise UserError(
                f"eval_config.inputs is choices_only, and question {open_one.id!r:.60} has no choices: evaluate a set "
                "of multiple choice"
            )
        return [replace(example, question="", images=(), image_places=(), earlier=()) for example in examples]
    if not any(example.images for example in examples):
        raise UserError(f"eval_config.inputs is {inputs}, and no question has an image: it would change nothing")
    if inputs == "question_only":
        return [replace(example, images=(), image_places=()) for example in examples]
    return _with_others_images(examples, seed)


def _with_others_images(examples: Sequence[Example], seed: int) -> list[Example]:
    changed = []
    for example, donor in zip(examples, other_inputs(seed, examples), strict=True):
        if example.images and donor is None:
            raise UserError(
                f"eval_config.inputs is other_image, and there is no other image for question {example.id!r:.60}: "
                "evaluate more questions"
            )
        images = examples[donor].images if example.images and donor is not None else ()
        changed.append(replace(example, images=images))
    return changed
