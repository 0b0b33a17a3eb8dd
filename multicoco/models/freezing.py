"""What of a model is trained."""

from transformers import PreTrainedModel

from multicoco.errors import UserError
from multicoco.models.families import family_of


def freeze(
    model: PreTrainedModel, vision_tower: bool = False, projector: bool = False, language_model: bool = False
) -> None:
    """Takes parts of a vision-language model out of training; the language model goes with its head.

    Raises:
        UserError: the model has no such part, or nothing is left to train.
    """
    family = family_of(model.config)
    wanted = {"vision_tower": vision_tower, "projector": projector, "language_model": language_model}
    parts = [family.part(model, name) for name, is_wanted in wanted.items() if is_wanted]
    if language_model:
        parts.append(model.get_output_embeddings())
    for part in parts:
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("freeze: nothing is left to train; set one of its parts to false")
