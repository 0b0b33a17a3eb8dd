"""`multicoco export`: the folder, and its way to the hub."""

import re
import shutil
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import GenerationConfig

from multicoco.engine.thought_weights import THOUGHTS
from multicoco.engine.weights import embedding_rows
from multicoco.errors import UserError
from multicoco.export import custom_generate
from multicoco.export.card import HUB_ID, model_card
from multicoco.export.checkpoint import Checkpoint, read_checkpoint

# what the adapters' base has: weights, however many files they are, and their config
_OF_THE_BASE = ("model*.safetensors*", "config.json")


def export(path: str, to: Path, push: str | None = None, merge: bool = False) -> str:
    """Writes a checkpoint as a folder for plain transformers.

    Args:
        path: of the checkpoint, as of `read_checkpoint`.
        to: the folder to be made.
        push: owner/name on the hub, where it is uploaded too.
        merge: of a run with LoRA, write a whole model; else its adapters are written apart, in peft's form.

    Returns: where it is.

    Raises:
        UserError: as `read_checkpoint`; there is something in the folder, it cannot be written or uploaded, or there
            are no adapters that are wanted merged or apart.
    """
    if push is not None and not HUB_ID.fullmatch(push):
        raise UserError(f"--push {push}: give the owner and the name of a model on the hub, as owner/name")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} is not empty: give another --to, or remove it")
    checkpoint = read_checkpoint(path)
    apart = _is_apart(checkpoint, push, merge)
    unfinished = to.with_name(f".{to.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _write(checkpoint, unfinished, push or to.resolve().name, apart)
        unfinished.rename(to)
    except OSError as error:
        raise UserError(f"{to} cannot be written ({error}): give another --to") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return _upload(to, push) if push else str(to)


def _is_apart(checkpoint: Checkpoint, push: str | None, merge: bool) -> bool:
    """Whether adapters are written, and not a whole model.

    Raises:
        UserError: see `export`.
    """
    if checkpoint.config.lora.rank is None:
        if merge:
            raise UserError(f"--merge: {checkpoint.folder} was trained without LoRA, its model is whole: leave it out")
        return False
    if merge:
        return False
    if checkpoint.base is None:
        raise UserError(
            f"{checkpoint.folder} has its LoRA adapters merged alone: it is of an earlier version, started from a "
            "state dict file, or has trained what peft does not save. Export it with --merge"
        )
    if push is not None and Path(checkpoint.base).exists():
        raise UserError(
            f"--push: the adapters of {checkpoint.folder} are for {checkpoint.base}, which is a folder of this machine "
            "and not on the hub: push the whole model, with --merge"
        )
    return True


def _write(checkpoint: Checkpoint, folder: Path, where: str, apart: bool) -> None:
    left_out = shutil.ignore_patterns(*_OF_THE_BASE) if apart else None
    shutil.copytree(checkpoint.model, folder, ignore=left_out, dirs_exist_ok=True)
    if apart:
        shutil.copytree(checkpoint.adapter, folder, dirs_exist_ok=True)
    _generation_config(checkpoint).save_pretrained(folder)
    if checkpoint.thinks and checkpoint.latent_tokens:
        code = _with_constants(checkpoint.latent_tokens.latent, (folder / THOUGHTS).exists())
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(code, encoding="utf-8")
    (folder / "README.md").write_text(model_card(checkpoint, where, apart), encoding="utf-8")


def _generation_config(checkpoint: Checkpoint) -> GenerationConfig:
    """Decodes as the run's evaluations do; rows of the embeddings that stand for no word are never generated."""
    tokenizer, config = checkpoint.reader.tokenizer, checkpoint.config
    own = GenerationConfig.from_pretrained(checkpoint.model).eos_token_id
    known = set(tokenizer.get_vocab().values())
    unknown = [row for row in range(embedding_rows(checkpoint.folder) or 0) if row not in known]
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        **config.generation.model_dump(),
        eos_token_id=sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}),
        pad_token_id=tokenizer.eos_token_id if pad is None else pad,
        suppress_tokens=unknown or None,
    )


def _with_constants(latent_token_id: int, has_projection: bool) -> str:
    """The code of the thoughts, as it is for this model."""
    code = Path(custom_generate.__file__).read_text(encoding="utf-8")
    for name, value in (("LATENT_TOKEN_ID", latent_token_id), ("HAS_PROJECTION", has_projection)):
        code, n = re.subn(rf"^{name} = \S+", f"{name} = {value}", code, flags=re.MULTILINE)
        assert n == 1
    return code


def _upload(folder: Path, repository: str) -> str:
    """Raises: UserError."""
    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export from MultiCoCo")
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{folder} is written, but could not be uploaded to {repository} ({first}): log in with `hf auth login`, "
            f"then `hf upload {repository} {folder}`"
        ) from error
    return f"{folder} and https://huggingface.co/{repository}"
