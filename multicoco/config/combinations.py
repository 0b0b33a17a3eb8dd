"""Combinations of the engine's keys that are refused: each a sentence, with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from multicoco.registry import load_all, names

if TYPE_CHECKING:
    from multicoco.config.schema import RunConfig

PUBLISHED_MODES = {"cot_train": "cot", "coconut_train": "coconut", "vanilla_train": "vanilla"}


def contradictions(config: RunConfig) -> Iterator[str]:
    """Keys of the engine's that exclude each other, or need another."""
    training, named = config.mode != "eval_only", PUBLISHED_MODES.get(config.mode)
    if config.mode == "train" and config.method is None:
        yield f"mode is train but method is null: name one of {', '.join(names('methods'))}"
    if named and config.method not in (None, named):
        yield f"mode is {config.mode} but method is {config.method}: set mode to train, or method to null"
    if training and not config.train_path:
        yield f"mode is {config.mode} but train_path is null: name the training records"
    if not training and not config.val_path:
        yield "mode is eval_only but val_path is null: name the records to evaluate"
    if not training and not config.eval_config.named_methods and config.method is None:
        yield (
            "mode is eval_only but none of eval_config.cot, .coconut and .vanilla is true: set one to true, or "
            "name a method in eval_config.methods, or the checkpoint's in method"
        )
    if (inputs := config.eval_config.inputs) != "all":
        if training:
            yield (
                f"eval_config.inputs is {inputs} but mode is {config.mode}, whose evaluations choose checkpoints: ask "
                "one of them so, by a run of mode eval_only"
            )
        for key in ("interventions", "thoughts"):
            if getattr(config.eval_config, key):
                yield f"eval_config.inputs is {inputs} but eval_config.{key} is set: each needs a run of its own"
    if (thoughts := config.eval_config.think_then_write) is not None:
        told = f"eval_config.think_then_write is {thoughts} but eval_config"
        if config.eval_config.eval_latent_tokens is not None:
            yield f"{told}.eval_latent_tokens is set: both say how many thoughts there are, leave one at null"
        if config.eval_config.answer_by == "likelihood":
            yield f"{told}.answer_by is likelihood, by which nothing is written: set it to generation"
    if "wandb" in config.tracking and config.wandb.mode == "disabled":
        yield "tracking has wandb but wandb.mode is disabled: set it to online or offline, or leave wandb out"
    if config.bf16 and config.fp16:
        yield "bf16 and fp16 are both true: set one of them to false"
    if training and config.features == "cache" and not config.freeze.vision_tower:
        yield (
            "features is cache but freeze.vision_tower is false: what it makes of an image changes with every step "
            "that it is trained; set freeze.vision_tower to true, or features to null"
        )
    if training and config.streaming:
        told = "streaming is true, by which no record is read before it is wanted, but"
        if config.features == "cache":
            yield f"{told} features is cache, which computes all images' ahead: set one of them to false or null"
        if config.group_by_length:
            yield f"{told} group_by_length is true, which measures all examples: set one of them to false"
    if training and config.lora.rank is not None and config.freeze.language_model:
        yield (
            f"lora.rank is {config.lora.rank} but freeze.language_model is true: set it to false, LoRA keeps the "
            "language model's own weights as they are"
        )


def pointless(config: RunConfig) -> Iterator[str]:
    """Keys of the engine's that ask for what would never happen."""
    training = config.mode != "eval_only"
    skipped = 0 if isinstance(config.resume, bool | str) else config.resume
    if not training and (config.resume is True or skipped):
        yield (
            f"resume is {config.resume} but mode is eval_only, which goes on with no run: leave it out, and name the "
            "weights to evaluate in load_model_path"
        )
    if training and skipped >= config.num_epochs:
        yield (
            f"resume is {skipped} but num_epochs is {config.num_epochs}, which counts skipped epochs too: raise it, or "
            "nothing is trained"
        )
    if training and not config.val_path:
        if config.save_only_improve:
            yield "save_only_improve is true but val_path is null: set it to false, or name the validation records"
        for name in config.eval_config.named_methods:
            told = config.eval_config.asks_by(name)
            yield f"{told} but val_path is null: leave it out, or name the records to evaluate"
        if config.eval_config.interventions:
            yield "eval_config.interventions are set but val_path is null: leave them out, or name the records"
        if config.eval_config.thoughts:
            yield "eval_config.thoughts is true but val_path is null: set it to false, or name the records to evaluate"
    for key in ("stream_lanes", "shuffle_buffer"):
        if not config.streaming and getattr(config, key) != type(config).model_fields[key].default:
            yield f"{key} is set but streaming is false: set it to true, or leave {key} out"
    if config.features_dir is not None and config.features is None:
        yield "features_dir is set but features is null: set features to cache, or leave features_dir out"
    if training and config.lora.rank is None and config.lora != type(config.lora)():
        yield "lora.rank is null, so all other keys of lora do nothing: set the rank, or leave them out"
    if training:
        yield from _of_other_methods(config)
    for part in config.lr if training and isinstance(config.lr, dict) else ():
        if getattr(config.freeze, part, False):
            yield f"lr.{part} is set but freeze.{part} is true: leave one of them out"
    if training and all(config.freeze.model_dump().values()):
        yield (
            "freeze.vision_tower, freeze.projector and freeze.language_model are all true "
            f"but mode is {config.mode}: leave one of them to train"
        )


def _of_other_methods(config: RunConfig) -> Iterator[str]:
    """Keys of methods that are not trained, but in sections that have one themselves to say so (coconut.enabled)."""
    methods = {name: method.sections() for name, method in load_all("methods").items()}
    for section, keys in {section: keys for own in methods.values() for section, keys in own.items()}.items():
        if section in methods.get(config.trained_method, ()) or "enabled" in keys.model_fields:
            continue
        having = " or ".join(name for name, own in methods.items() if section in own)
        for key, default in keys():
            if getattr(getattr(config, section), key) != default:
                yield (
                    f"{section}.{key} is set but the method is {config.trained_method}, which does not read it: leave "
                    f"it out, or train {having}"
                )
