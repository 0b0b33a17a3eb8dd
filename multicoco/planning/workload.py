"""How long the examples of a run are in its stages: measured on its data where that is at hand, otherwise assumed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens
from multicoco.data.example import Example
from multicoco.data.prompt import PromptBuilder
from multicoco.data.sources import load_of_run
from multicoco.engine.keeping import folder_of
from multicoco.engine.streaming import open_stream
from multicoco.errors import UserError
from multicoco.methods import Method, method_class
from multicoco.methods.method import Beside, Extent
from multicoco.models.families import family_of
from multicoco.planning.geometry import ModelGeometry, Workload

MEASURED_EXAMPLES = 1000


@dataclass(frozen=True)
class Lengths:
    """Tokens of an example: of its text before the latent tokens, of each written step, of its answer."""

    prompt: int = 128
    steps: Sequence[int] = (24,) * 6
    answer: int = 16


def stage_workloads(
    config: RunConfig, model: ModelGeometry, tiles: int | None, assumed: Lengths | None
) -> tuple[list[Workload], str]:
    """The longest examples of the first stage, which writes most, and of the one with most passes and thoughts, last.

    Args:
        tiles: image tiles of an example with an image; the most the config allows by default.
        assumed: lengths that take the place of the data's.

    Returns: the workloads, and in words where the lengths are from.
    """
    method = method_class(config.trained_method)(config)
    stages = method.schedule.reachable(config.num_epochs)
    thoughts = {stage: method.extent(ExampleTokens([]), stage).thoughts for stage in stages}
    deepest = min(stages, key=lambda stage: (-method.passes(stage), -thoughts[stage], stage))
    tiles = (tiles or family_of(model.config).most_tiles(config.max_image_tiles)) if model.tile else 0
    measured = None if assumed else _measure(config, model, tiles, method)
    if measured:
        examples, source = measured, f"measured on the first {len(measured)} records of {config.train_path}"
    else:
        lengths = assumed or Lengths()
        steps = [[0] * n for n in lengths.steps] if method.asked == "reasoning" else []
        examples = [ExampleTokens([0] * (lengths.prompt + tiles * model.tile_tokens), steps, [0] * lengths.answer)]
        source = "assumed" if assumed else "assumed: data or tokenizer are not at hand"
    return [_workload(method, stage, examples, tiles) for stage in sorted({min(stages), deepest})], source


def _workload(method: Method, stage: int, examples: Sequence[ExampleTokens], tiles: int) -> Workload:
    """The batch is padded to the longest of each, so that the latent columns line up."""
    extents = [_allowed(method.extent(tokens, stage), method) for tokens in examples]
    context, thoughts, written, shared, branch = (max(part) for part in zip(*extents, strict=True))
    rows, schedule = method.rows(stage), method.pass_schedule
    besides = [beside for tokens in examples if (beside := method.beside(tokens, stage)) is not None]
    beside = Beside(*map(max, zip(*besides, strict=True))) if besides else None
    return Workload(tiles, context, thoughts, written, rows, schedule, shared, branch, beside)


def _allowed(extent: Extent, method: Method) -> Extent:
    """A longer example is not trained on: in its place one of `max_length`, with the same reasoning and a shorter
    prompt, as its images may be smaller than assumed here."""
    excess = max(0, extent.length - (method.config.max_length or extent.length))
    left_out = min(excess, (extent.shared or extent.context) - 1)
    shared = max(0, extent.shared - left_out)
    return extent._replace(context=extent.context - left_out, shared=shared)


def _first(config: RunConfig, path: str) -> list[Example]:
    """Good ones, their images unseen."""
    if config.streaming:
        return open_stream(config, folder_of(config)).first(MEASURED_EXAMPLES, verify_images=False).examples
    return load_of_run(config, path, MEASURED_EXAMPLES, on_bad_record="skip", verify_images=False)


def _measure(config: RunConfig, model: ModelGeometry, tiles: int, method: Method) -> list[ExampleTokens]:
    """Nothing, where the tokenizer or the records cannot be read from this machine's disk."""
    if not Path(config.model_id).is_dir() or config.train_path is None:
        return []
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model_id, trust_remote_code=config.trust_remote_code)
        examples = _first(config, config.train_path)
        family = family_of(model.config)
        prompt = PromptBuilder(
            tokenizer,
            config.answer_format,
            family,
            config.direct_instruction,
            config.reasoning_instruction,
            config.prompt_date or "2000-01-01",  # as long as any other
        )
        return [prompt(x, method.asked, [family.written(tiles)] * len(x.images) if x.images else []) for x in examples]
    except (UserError, OSError, ValueError, KeyError):
        return []
