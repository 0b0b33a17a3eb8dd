"""Loading a backbone: model, tokenizer and image processor, checked; and saving it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from multicoco.curriculum import LatentTokens
from multicoco.errors import UserError
from multicoco.models.checks import check_files, check_template, check_tokenizer
from multicoco.models.families import Family, check_form, family_of
from multicoco.models.generation import reset_generation
from multicoco.models.lora import merge_lora, save_lora

# small files of a model that neither its tokenizer nor its image processor writes
_KEPT_FILES = tuple(f"{name}.json" for name in ("generation_config", "processor_config", "video_preprocessor_config"))


@dataclass
class Backbone:
    """A model with what turns text and images into its inputs.

    Attributes:
        image_processor: None for a text-only model.
        latent_tokens: None until `add_latent_tokens`.
        kept_files: of the origin, by name; a saved model gets them unchanged, but for the image processor in them.
        base: folder or hub id of the model as it was loaded; None where plain transformers does not load it so.
        ignored_generation: what the model's own generation_config.json sets and a run does not use.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    latent_tokens: LatentTokens | None = None
    kept_files: dict[str, bytes] = field(default_factory=dict)
    ignored_generation: dict[str, Any] = field(default_factory=dict)
    base: str | None = None

    @cached_property
    def family(self) -> Family:
        return family_of(self.model.config)

    @property
    def end_token_ids(self) -> list[int]:
        """What ends an answer: the tokenizer's end of text, and what the model itself was made to stop at."""
        own = self.model.generation_config.eos_token_id
        return sorted({self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})

    def save_pretrained(self, path: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """A Hugging Face directory that loads as its origin: safetensors weights, adapters merged into them, tokenizer,
        image processor, and the files for a processor and for generation."""
        weights = self.model.state_dict() if state_dict is None else state_dict
        self.model.save_pretrained(path, state_dict=merge_lora(self.model, weights))
        self.tokenizer.save_pretrained(path)
        if self.image_processor is not None:
            self.image_processor.save_pretrained(path)
        for name, content in self.kept_files.items():
            (path / name).write_bytes(content)
        if self.image_processor is not None:
            _put_image_processor(path)

    def save_adapters(self, path: Path, state_dict: dict[str, torch.Tensor]) -> None:
        """As `save_lora`, if the model has adapters and a base."""
        if self.base is not None:
            save_lora(self.model, state_dict, self.base, path)


def load_backbone(
    source: str,
    dtype: torch.dtype = torch.float32,
    max_image_tiles: int = 12,
    trust_remote_code: bool = False,
) -> Backbone:
    """Loads a Hugging Face directory or hub id of a supported family, and checks that its parts fit each other.

    Its generation config keeps the end-of-text tokens alone: the rest is the run's to say.

    Raises:
        UserError: nothing loadable there, a model of no family, damaged or unfitting weights, a tokenizer that has no
            words, no end-of-text token or words that the model has not, or a chat template that loses a user's text.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    with one_message(source):
        check_files(Path(source))
        check_form(source)
        family = family_of(AutoConfig.from_pretrained(source, **options))
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if tokenizer.chat_template is None:
            tokenizer.chat_template = _template_of_processor(source)
        image_processor = family.load_image_processor(source, max_image_tiles, **options)
        # by the family's config, which may say what the image processor was set to
        options["config"] = family.config
        model, report = family.auto_model.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[kind]:
                raise UserError(f"{kind.replace('_', ' ')} in its weights: {sorted(map(str, report[kind]))}")
        n_rows = model.get_input_embeddings().num_embeddings
        check_tokenizer(tokenizer, n_rows)
        check_template(tokenizer, family, n_rows, image_processor)
        kept = _read_kept_files(source)
        kept.setdefault("generation_config.json", model.generation_config.to_json_string().encode())
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= n_rows:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, any token does
    return Backbone(
        model,
        tokenizer,
        image_processor,
        kept_files=kept,
        ignored_generation=reset_generation(model, tokenizer),
        base=str(Path(source).resolve()) if Path(source).exists() else source,
    )


@contextmanager
def one_message(source: str) -> Iterator[None]:
    """Whatever transformers, its libraries or a model's own code raise, in a sentence that names the model."""
    try:
        yield
    except UserError as error:
        raise UserError(f"model {source!r}: {error}") from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        here = "" if Path(source).exists() else "no such folder is here; "
        raise UserError(
            f"model {source!r} cannot be loaded: {lines[0]} "
            f"({here}give a Hugging Face directory with config.json, weights and tokenizer, or a hub id)"
        ) from error


def _put_image_processor(path: Path) -> None:
    """That of a saved folder, also where transformers 5 keeps one beside other parts, which it prefers."""
    all_of_them = path / "processor_config.json"
    parts = json.loads(all_of_them.read_text()) if all_of_them.exists() else {}
    if "image_processor" in parts:
        parts["image_processor"] = json.loads((path / "preprocessor_config.json").read_text())
        all_of_them.write_text(json.dumps(parts, indent=2) + "\n")


def _template_of_processor(source: str) -> str | None:
    """The chat template that some vision-language models have in a file which only transformers' processors read."""
    path = optional_file(source, "chat_template.json")
    return None if path is None else str(json.loads(path.read_bytes())["chat_template"])


def _read_kept_files(source: str) -> dict[str, bytes]:
    """Those of `_KEPT_FILES` that there are."""
    found = {name: optional_file(source, name) for name in _KEPT_FILES}
    return {name: path.read_bytes() for name, path in found.items() if path is not None}


def optional_file(source: str, name: str) -> Path | None:
    """A file that a directory, or a model of the hub, may have."""
    optional = ("missing_entries", "connection_errors", "gated_repo")
    path = cached_file(source, name, **{f"_raise_exceptions_for_{kind}": False for kind in optional})
    return None if path is None else Path(path)
