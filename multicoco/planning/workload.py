"""How long the examples of a run are in its stages: measured on its data where that is at hand, otherwise assumed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from multicoco.config import RunConfig
from multicoco.curriculum import StageSchedule
from multicoco.data.aokvqa import load_examples
from multicoco.data.prompt import PromptBuilder
from multicoco.errors import UserError
from multicoco.planning.geometry import ModelGeometry, Workload
from multicoco.trainer import build_schedule

MEASURED_EXAMPLES = 1000


@dataclass(frozen=True)
class Lengths:
    """Tokens of an example: of its text before the latent tokens, of each written step, of its answer."""

    prompt: int = 128
    steps: Sequence[int] = (24,) * 6
    answer: int = 16


def stage_workloads(
    config: RunConfig, model: ModelGeometry, tiles: int, assumed: Lengths | None
) -> tuple[list[Workload], str]:
    """The longest examples of the first stage, which writes most, and of the one with the most latent tokens, last.

    Args:
        tiles: image tiles of an example with an image.
        assumed: lengths that take the place of the data's.

    Returns: the workloads, and in words where the lengths are from.
    """
    schedule = build_schedule(config)
    stages = {schedule.stage(epoch) for epoch in range(config.num_epochs)}
    deepest = min(stages, key=lambda stage: (-schedule.max_latents(stage), stage))
    tiles = tiles if model.tile else 0
    measured = None if assumed else _measure(config, model, tiles)
    if measured:
        lengths, source = measured, f"measured on the first {len(measured)} records of {config.train_path}"
    else:
        lengths = [assumed or Lengths()]
        lengths = [Lengths(x.prompt + tiles * model.tile_tokens, x.steps, x.answer) for x in lengths]
        source = "assumed" if assumed else "assumed: data or tokenizer are not at hand"
    if config.mode == "vanilla_train":
        lengths = [Lengths(x.prompt, (), x.answer) for x in lengths]
    return [_workload(schedule, stage, lengths, tiles) for stage in sorted({min(stages), deepest})], source


def _workload(schedule: StageSchedule, stage: int, lengths: Sequence[Lengths], tiles: int) -> Workload:
    """The batch is padded to the longest of each, so that the latent columns line up."""
    latents, written = schedule.max_latents(stage), []
    for example in lengths:
        # an example that draws its stage may write all of its steps
        replaced = 0 if schedule.uniform_prob else schedule.train_counts(stage, len(example.steps))[0]
        written.append(sum(example.steps[replaced:]) + example.answer)
    around = 1 if latents else 0  # the tokens that begin and end the latent block
    return Workload(tiles, max(x.prompt for x in lengths) + around, latents, max(written) + around)


def _measure(config: RunConfig, model: ModelGeometry, tiles: int) -> list[Lengths]:
    """Nothing, where the tokenizer or the records cannot be read from this machine's disk."""
    if not Path(config.model_id).is_dir():
        return []
    root = Path(config.data_dir)
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model_id, trust_remote_code=config.trust_remote_code)
        examples = load_examples(
            root / config.train_path,
            Path(config.image_dir) if config.image_dir else root,
            config.steps_from,
            "skip",
            MEASURED_EXAMPLES,
            verify_images=False,
        )
        prompt = PromptBuilder(
            tokenizer,
            config.answer_format,
            getattr(model.config, "image_token_id", None),
            getattr(model.config, "image_seq_length", None),
            config.direct_instruction,
            config.reasoning_instruction,
        )
        reasoning = config.mode.removesuffix("_train")
        tokens = [prompt(x, reasoning, tiles if x.image is not None else 0) for x in examples]
    except (UserError, OSError, ValueError, KeyError):
        return []
    return [Lengths(len(x.prompt), [len(step) for step in x.steps], len(x.answer)) for x in tokens]
