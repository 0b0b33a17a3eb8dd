"""How long the examples of a run are in its stages: measured on its data where that is at hand, otherwise assumed."""

from collections.abc import Sequence
from dataclasses import dataclass

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens
from multicoco.methods import Method, method_class
from multicoco.methods.method import Beside, Extent
from multicoco.models.families import family_of
from multicoco.planning.geometry import ModelGeometry, Workload
from multicoco.planning.sample import Sample, look_at


@dataclass(frozen=True)
class Lengths:
    """Tokens of an example: of its text before the latent tokens, of each written step, of its answer."""

    prompt: int = 128
    steps: Sequence[int] = (24,) * 6
    answer: int = 16


def stage_workloads(
    config: RunConfig, model: ModelGeometry, tiles: int | None, assumed: Lengths | None
) -> tuple[list[Workload], str, Sample | None]:
    """The longest examples of the first stage, which writes most, and of the one with most passes and thoughts, last.

    Args:
        tiles: of an image; the most the config allows by default.
        assumed: lengths that take the place of the data's.

    Returns: the workloads, in words where the lengths are from, and the records that they are measured on, if they are.
    """
    method = method_class(config.trained_method)(config)
    stages = method.schedule.reachable(config.num_epochs)
    thoughts = {stage: method.extent(ExampleTokens([]), stage).thoughts for stage in stages}
    deepest = min(stages, key=lambda stage: (-method.passes(stage), -thoughts[stage], -method.said(stage), stage))
    most = family_of(model.config).most_tiles(config.max_image_tiles) if model.tile else 0
    of_image = (tiles or (1 if most is None else most)) if model.tile else 0
    sample = None if assumed else look_at(config, model, of_image, method.asked)
    examples: Sequence[ExampleTokens]
    if sample:
        examples, source = sample.tokens, f"measured on the first {len(sample.tokens)} records of {config.train_path}"
        of_example = of_image * max(len(example.images) for example in sample.examples)
    else:
        lengths = assumed or Lengths()
        steps = [[0] * n for n in lengths.steps] if method.asked == "reasoning" else []
        examples = [ExampleTokens([0] * (lengths.prompt + of_image * model.tile_tokens), steps, [0] * lengths.answer)]
        source = "assumed" if assumed else "assumed: data or tokenizer are not at hand"
        of_example = of_image
    if most is None and tiles is None:
        source += (
            f"; into how many pictures an image of a {model.config.model_type} model is cut, its processor alone knows:"
            " one, if --image-tiles does not say otherwise"
        )
    shown = sorted({min(stages), deepest})
    return [_workload(method, stage, examples, of_example) for stage in shown], source, sample


def _workload(method: Method, stage: int, examples: Sequence[ExampleTokens], tiles: int) -> Workload:
    """The batch is padded to the longest of each, so that the latent columns line up."""
    extents = [_allowed(method.extent(tokens, stage), method) for tokens in examples]
    context, thoughts, written, shared, branch = (max(part) for part in zip(*extents, strict=True))
    rows, schedule = method.rows(stage), method.pass_schedule
    besides = [beside for tokens in examples if (beside := method.beside(tokens, stage)) is not None]
    beside = Beside(*map(max, zip(*besides, strict=True))) if besides else None
    return Workload(tiles, context, thoughts, written, rows, schedule, shared, branch, beside, method.said(stage))


def _allowed(extent: Extent, method: Method) -> Extent:
    """A longer example is not trained on: in its place one of `max_length`, with the same reasoning and a shorter
    prompt, as its images may be smaller than assumed here."""
    excess = max(0, extent.length - (method.config.max_length or extent.length))
    left_out = min(excess, (extent.shared or extent.context) - 1)
    shared = max(0, extent.shared - left_out)
    return extent._replace(context=extent.context - left_out, shared=shared)
