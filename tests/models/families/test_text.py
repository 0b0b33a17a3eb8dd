import pytest
from transformers import AutoConfig

from multicoco.errors import UserError
from multicoco.models.families import family_of
from multicoco.models.families.text import Text


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "llama", "dbrx", "opt"])
def test_a_language_model_is_one_of_the_family(kind):
    assert type(family_of(AutoConfig.for_model(kind))) is Text


@pytest.mark.parametrize(
    "kind", ["llava_next", "mistral3", "chameleon", "qwen2_audio", "t5", "bart", "whisper", "clip"]
)
def test_models_of_no_family_are_refused_by_their_kind(kind):
    with pytest.raises(UserError, match=f"a {kind} model is of no family"):
        family_of(AutoConfig.for_model(kind))


def test_fewer_layers_leave_the_config_as_it_was():
    config = AutoConfig.for_model("qwen2", num_hidden_layers=3)
    fewer = family_of(config).with_layers(2)
    assert (fewer.num_hidden_layers, len(fewer.layer_types), config.num_hidden_layers) == (2, 2, 3)
