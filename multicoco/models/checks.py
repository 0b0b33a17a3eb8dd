"""What comes with a model, checked before it is used: weight files, tokenizer, chat template, positions."""

import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from multicoco.errors import UserError
from multicoco.models.families import Family

_LFS = b"version https://git-lfs"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them
_SMALL_FILES = (".json", ".jinja", ".model", ".tiktoken", ".txt")
_QUESTION = "Which tile is red?"


def check_files(folder: Path) -> None:
    """Checks the files that a model is loaded from without reading the weights; a hub id is left to the hub's client.

    Raises:
        UserError: names one that is a Git LFS pointer, empty, cut, damaged or missing, or that holds code.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in _SMALL_FILES and path.is_file():
            _check_content(path)
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return _check_weights(folder / name)
        if index.exists():
            for shard in sorted(_shards(index)):
                _check_weights(folder / shard)
            return


def _check_content(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(len(_LFS))
    if start == _LFS:
        raise UserError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` there, or download it")
    if not start:
        raise UserError(f"{path} is empty: download it again")


def _shards(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of weight files ({error}): download it again") from error


def _check_weights(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing, which the index of the weights names: download it")
    _check_content(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):  # reads the header, and compares it with the file's size
                pass
        else:
            torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
    except SafetensorError as error:
        raise UserError(f"{path} is cut or damaged ({error}): download it again") from error
    except Exception as error:  # unpickling may raise anything
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path} is cut or damaged, or holds code, which is not run ({reason}): download it as safetensors"
        ) from error


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, n_rows: int) -> None:
    """Checks that a tokenizer knows words, and none that a text may hold and that the model has no row for.

    Args:
        n_rows: of the model's embeddings.

    Raises:
        UserError: says which tokens.
    """
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    special = {id for id, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    words = [word for word, id in vocabulary.items() if id not in added and id not in special]
    texts = [_QUESTION, *words[:100]]
    if not any(set(tokenizer.encode(text, add_special_tokens=False)) - special for text in texts):
        raise UserError(
            f"its tokenizer has no words: {_QUESTION!r} is no token of it; put its files (tokenizer.json) beside it"
        )
    if tokenizer.eos_token_id is None:
        raise UserError("its tokenizer has no end-of-text token (eos_token); answers would never end")
    unknown = {id for id in vocabulary.values() if id >= n_rows}
    _refuse_unknown(tokenizer, unknown - special, n_rows, "a text can hold")
    _refuse_unknown(tokenizer, unknown & {tokenizer.eos_token_id}, n_rows, "every answer ends with")


def check_template(
    tokenizer: PreTrainedTokenizerBase, family: Family, n_rows: int, image_processor: Any = None
) -> None:
    """Checks what stands around a question: the chat template's tokens or, without one, the tokenizer's.

    Args:
        n_rows: of the model's embeddings.

    Raises:
        UserError: the template fails, loses the user's text or an image, or has tokens that the model does not know.
    """
    if tokenizer.chat_template is None:
        prompts = [tokenizer.encode(_QUESTION)]
    else:
        prompts = [_encode_turn(tokenizer, family, [])]
        if family.sees_images:
            shown = family.read_images([Image.new("RGB", (64, 64))], image_processor)
            prompts.append(_encode_turn(tokenizer, family, shown.tokens))
    for ids in prompts:
        _refuse_unknown(tokenizer, {id for id in ids if id >= n_rows}, n_rows, "every prompt holds")


def _encode_turn(tokenizer: PreTrainedTokenizerBase, family: Family, images: Sequence[Any]) -> list[int]:
    """A user's turn with images, as of `ImageInputs.tokens`."""
    turn: dict[str, Any] = {"role": "user", "content": family.content(_QUESTION, len(images))}
    try:
        rendered = cast(str, tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template may raise anything
        raise UserError(f"its chat template fails on a user's turn ({error}): mend it, or remove it") from error
    if rendered.count(_QUESTION) != 1:
        raise UserError(
            f"its chat template shows a user's text {rendered.count(_QUESTION)} times instead of once: mend it"
        )
    ids = tokenizer.encode(rendered, add_special_tokens=False)
    if tokenizer.unk_token_id in ids and tokenizer.unk_token not in rendered:
        raise UserError(f"its tokenizer does not know all of its chat template, {rendered!r}: is it another model's?")
    return family.place_images(ids, images, tokenizer)


def _refuse_unknown(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], n_rows: int, what: str) -> None:
    names = [f"{name!r} ({id})" for id in sorted(ids) for name in [tokenizer.convert_ids_to_tokens(id)]]
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise UserError(
            f"its tokenizer has {', '.join(names[:5])}{more}, which {what}, but the model only {n_rows} embeddings: "
            "resize them (resize_token_embeddings), or give the tokenizer that belongs to the model"
        )


def position_limit(model: PreTrainedModel) -> int | None:
    """How many positions a model has learned embeddings for; None where it computes them, as rotary ones."""
    tables = {
        name.rpartition(".")[2]: module
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, nn.Embedding)
    }
    limits = [
        table.num_embeddings - getattr(table, "offset", 0)  # OPT's first rows stand for no position
        for name, table in tables.items()
        if name == "wpe" or "position" in name
    ]
    return min(limits, default=None)
