"""Examples with their tokens, of which everything that is shown is counted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens, LatentTokens
from multicoco.data.example import Example
from multicoco.data.loader import Encoder
from multicoco.engine.assembly import encoder_of, prompt_date, weights_of
from multicoco.engine.weights import Weights
from multicoco.evaluation.evaluator import evaluation_methods
from multicoco.evaluation.run import as_trained
from multicoco.methods import Method, method_class, thinking_method
from multicoco.models.checks import position_limit
from multicoco.models.families import Family
from multicoco.models.reader import Reader, load_reader
from multicoco.models.vocabulary import add_latent_words


@dataclass(frozen=True)
class Setup:
    """What a run makes of examples, without its weights.

    Attributes:
        positions: of the model, the longest sequence that it takes; None: any.
        trained: the method that trains; None in a run that only evaluates.
        asked: the methods by which questions are asked, by their names.
        stage: the last one, in which they are asked.
    """

    reader: Reader
    encoder: Encoder
    latent: LatentTokens | None
    positions: int | None
    trained: Method | None
    asked: dict[str, Method]
    stage: int


def set_up(config: RunConfig) -> Setup:
    """The run's tokenizer, image processor and methods.

    Raises:
        UserError: the model's files cannot be read.
    """
    weights = weights_of(config)
    trains = config.mode != "eval_only"
    config, stage, _ = (config, 0, []) if trains else as_trained(config, weights)
    source = config.model_id if Path(weights.source).is_file() or _is_to_come(config, weights) else weights.source
    reader = load_reader(source, config.max_image_tiles, config.trust_remote_code)
    latent = add_latent_words(reader.tokenizer) if thinking_method(config) else None
    encoder = encoder_of(config, reader, prompt_date(config, weights.state))
    methods = evaluation_methods(config, latent)
    trained = method_class(config.trained_method)(config, latent) if trains else None
    if trained:
        stage = trained.schedule.stage(config.num_epochs - 1)
    return Setup(reader, encoder, latent, _positions(reader.family, reader.config), trained, methods, stage)


def _is_to_come(config: RunConfig, weights: Weights) -> bool:
    """Whether the run that it starts from has not been trained yet; its words will be those of model_id."""
    path = Path(weights.source)
    return config.mode != "eval_only" and path.is_relative_to(config.output_dir) and not path.exists()


def _positions(family: Family, config: PreTrainedConfig) -> int | None:
    """Found on a model of shapes alone; of a model that cannot be made so it is not known before the run."""
    try:
        with torch.device("meta"):
            return position_limit(family.auto_model.from_config(config))
    except Exception:  # a model's own code may raise anything
        return None


@dataclass(frozen=True)
class Measured:
    """An example as tokens; its images add `image_tokens` to its prompt."""

    example: Example
    tokens: ExampleTokens
    image_tokens: int


def measure(examples: Iterable[Example], setup: Setup, method: Method) -> list[Measured]:
    """Encodes examples, their images read, as a method asks for them."""
    measured = []
    for example in examples:
        images = setup.encoder.images(example)
        tokens = setup.encoder.prompt(example, method.asked, images.tokens)
        without = setup.encoder.prompt(example, method.asked)
        measured.append(Measured(example, tokens, len(tokens.prompt) - len(without.prompt)))
    return measured


def evenly(n: int, of: Sequence[Example]) -> list[Example]:
    """So many of them, evenly spaced, or all."""
    return [of[place * len(of) // n] for place in range(n)] if n < len(of) else list(of)


def typical(measured: Sequence[Measured]) -> Measured:
    """The first one with the middle number of steps."""
    counts = sorted(len(one.example.steps) for one in measured)
    return next(one for one in measured if len(one.example.steps) == counts[len(counts) // 2])
