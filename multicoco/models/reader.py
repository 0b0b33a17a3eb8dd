"""What turns text and images into a model's inputs, without the model's weights."""

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from multicoco.models.backbone import one_message
from multicoco.models.families import Family, check_form, family_of


@dataclass(frozen=True)
class Reader:
    """As in `Backbone`, with the model's config in the place of the model."""

    config: PreTrainedConfig
    family: Family
    tokenizer: PreTrainedTokenizerBase
    image_processor: Any


def load_reader(source: str, max_image_tiles: int = 12, trust_remote_code: bool = False) -> Reader:
    """From a Hugging Face directory or hub id of a supported family.

    Raises:
        UserError: nothing loadable there, or a model of no family.
    """
    options = {"trust_remote_code": trust_remote_code}
    with one_message(source):
        check_form(source)
        config = AutoConfig.from_pretrained(source, **options)
        family = family_of(config)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        return Reader(config, family, tokenizer, family.load_image_processor(source, max_image_tiles, **options))
