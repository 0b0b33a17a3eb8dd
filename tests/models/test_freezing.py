import pytest
from reference import internvl, qwen2

from multicoco.errors import UserError
from multicoco.models.freezing import freeze


@pytest.mark.parametrize("part", ["vision_tower", "projector", "language_model"])
def test_freeze_takes_exactly_that_part_out(part):
    model = internvl()
    freeze(model, **{part: True})
    names = {
        "vision_tower": ["vision_tower"],
        "projector": ["multi_modal_projector"],
        "language_model": ["language_model", "lm_head"],
    }
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != any(f"{n}." in name for n in names[part]), name


def test_freezing_what_is_not_there_or_everything_is_refused():
    with pytest.raises(UserError, match="has no vision_tower"):
        freeze(qwen2(), vision_tower=True)
    with pytest.raises(UserError, match="nothing is left"):
        freeze(qwen2(), language_model=True)
