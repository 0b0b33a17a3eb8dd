"""A model's parts and how many parameters each has, from its config alone; and what a training example is made of."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from multicoco.config.schema import Lora
from multicoco.curriculum import Fork
from multicoco.errors import UserError
from multicoco.latent.schedule import SEQUENTIAL, Branched, Pass, PassSchedule
from multicoco.methods.method import Beside
from multicoco.models.families import Family, Tile, check_form, family_of
from multicoco.models.layers import find_layers
from multicoco.planning.trace import ObjectiveOf, Tracer, cache_shape, meta_model, no_objective


@dataclass(frozen=True)
class Part:
    """Parameters that come and go together.

    Attributes:
        parameters, trainable: how many.
        largest: of its tensors that are trained, in numbers.
        copies: layers of this kind.
    """

    parameters: int
    trainable: int
    largest: int
    copies: int = 1


NO_PART = Part(0, 0, 0, 0)


@dataclass(frozen=True)
class Workload:
    """A stage's longest examples.

    Attributes:
        tiles: image tiles of an example; 0 without an image.
        prompt: columns before the first latent one, image tokens included.
        latents: latent tokens.
        written: columns that carry a loss.
        rows: that an example takes in a batch; the first of them carries the loss.
        schedule: of the passes, but for that of the branches.
        shared, branch: as of `methods.method.Extent`; the branch carries a loss too.
        beside: what the objective runs besides.
        said: words that its thoughts are made to say.
    """

    tiles: int
    prompt: int
    latents: int
    written: int
    rows: int = 1
    schedule: PassSchedule = SEQUENTIAL
    shared: int = 0
    branch: int = 0
    beside: Beside | None = None
    said: int = 0

    @property
    def length(self) -> int:
        """Columns of a row, without its branch."""
        return self.prompt + self.latents + self.written

    @property
    def columns(self) -> int:
        """With its branch, which is padded to what it writes over."""
        return self.length + (max(self.branch, self.length - self.shared) if self.branch else 0)

    @property
    def labelled(self) -> int:
        return self.written + self.branch

    @cached_property
    def passes(self) -> list[Pass]:
        schedule = Branched(self.schedule, Fork(self.shared, self.length)) if self.branch else self.schedule
        return schedule.passes(range(self.prompt, self.prompt + self.latents), (), self.columns, None)

    @property
    def cached(self) -> int:
        """Columns of the cache."""
        return max(one.stop for one in self.passes)

    @property
    def segments(self) -> list[int]:
        """Columns of each pass."""
        return [one.end - one.start for one in self.passes]

    @property
    def written_over(self) -> int:
        """Columns that a pass finds in the cache where it writes, of all passes together."""
        return sum(before.stop - one.column for before, one in pairwise(self.passes))


@dataclass(frozen=True)
class Reader:
    """A language model that an objective runs besides the passes.

    Attributes:
        layer: all that one of its layers is computed with.
        own: what of that is not the trained model's.
        rest: likewise, outside of layers.
    """

    layer: Part
    own: Part
    rest: Part

    @property
    def shares(self) -> bool:
        """Whether it trains the model's own weights, whose gradients it begins."""
        return self.own.trainable < self.layer.trainable


@dataclass(frozen=True, eq=False)
class ModelGeometry:
    """The parts of a model in the order of the data flow, and traces of its layers. Made by `geometry_of`.

    Attributes:
        config: transformers'.
        dtype: of the parameters.
        tile: what an image is cut into, on its way through the model; None: it sees none.
        kept_parts: as of `geometry_of`.
        kept_bytes: of what is kept of one tile; 0 where nothing is.
        vision_layer, projector, embedding, decoder_layer, head: `NO_PART` where there is none of its own.
        is_tied: whether the head is the embedding.
        whole: the model.
        decoder_parameters: without the embedding.
        unused_parameters: that no step calls.
        reader: what the objective runs besides the passes.
        projection: of thoughts.
    """

    config: PreTrainedConfig
    dtype: torch.dtype
    trace: Tracer
    tile: Tile | None
    kept_parts: Collection[str]
    kept_bytes: int
    vision_layer: Part
    projector: Part
    embedding: Part
    decoder_layer: Part
    head: Part
    is_tied: bool
    whole: Part
    decoder_parameters: int
    unused_parameters: int
    reader: Reader | None
    projection: Part | None

    @property
    def text(self) -> PreTrainedConfig:
        config: PreTrainedConfig = self.config.get_text_config()
        return config

    @property
    def _trained_together(self) -> list[Part]:
        """The model, and what is trained beside it."""
        beside = [self.reader.own, self.reader.rest] if self.reader else []
        return [self.whole, *beside, *([self.projection] if self.projection else [])]

    @property
    def parameters(self) -> int:
        return sum(part.copies * part.parameters for part in self._trained_together)

    @property
    def trainable(self) -> int:
        return sum(part.copies * part.trainable for part in self._trained_together)

    @property
    def largest(self) -> int:
        """Numbers of the largest tensor that is trained."""
        return max(part.largest for part in self._trained_together)

    @property
    def called_parameters(self) -> int:
        """In a step."""
        return self.parameters - self.unused_parameters

    @property
    def saved_parameters(self) -> int:
        """In what is saved to be used."""
        return self.whole.parameters + (self.projection.parameters if self.projection else 0)

    @property
    def encoded(self) -> Tile | None:
        """What of images a step encodes."""
        return None if self.kept_parts else self.tile

    @property
    def projects_kept(self) -> bool:
        """Whether a step makes features of what is kept."""
        return self.tile is not None and bool(self.kept_parts) and "projector" not in self.kept_parts

    @property
    def width(self) -> int:
        """Bytes of a parameter."""
        return self.dtype.itemsize

    @property
    def cache_numbers(self) -> int:
        """Numbers in the keys, or the values, of one column of all layers."""
        heads, head_dim = cache_shape(self.text)
        return self.decoder_layer.copies * heads * head_dim

    @property
    def tile_tokens(self) -> int:
        """Columns of one tile in the language model."""
        return self.tile.tokens if self.tile else 0

    @property
    def tile_bytes(self) -> int:
        """Of one tile as a batch has it: its pixels, as the image processor gives them, or what is kept of it."""
        return 4 * math.prod(self.encoded.shape) if self.encoded else self.kept_bytes


def geometry_of(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    freezing: dict[str, bool],
    objective: ObjectiveOf = no_objective,
    kept_parts: Collection[str] = (),
    lora: Lora | None = None,
    projection: Callable[[PreTrainedModel], nn.Module | None] = no_objective,
) -> ModelGeometry:
    """Of a model of any family, from its config alone.

    Args:
        config: transformers'.
        dtype: of the parameters.
        freezing, lora: as in the run config.
        objective, projection: as of `Method`.
        kept_parts: keys of `freeze` of the parts that no step calls, because what they make of images is kept
            (`features: cache`): none, the vision tower, or the projector too.

    Raises:
        UserError: the model is of another kind, or has not the parts that `freezing` names.
    """
    family = family_of(config)
    if family.sees_images and family.tile is None:
        raise _unplanned(config, "its family does not say what an image is on its way through it")
    model = meta_model(config, dtype, freezing, lora)
    decoder, embedding, head = model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = not _ids(head).isdisjoint(_ids(embedding))
    vision = family.vision_layers(model)
    try:
        layers = find_layers(decoder, config.get_text_config().num_hidden_layers)[1]
    except ValueError as error:
        raise _unplanned(config, str(error)) from error
    kept = [family.part(model, name) for name in kept_parts if name in family.parts]
    with torch.device("meta"):
        projected = projection(model)
    return ModelGeometry(
        config=config,
        dtype=dtype,
        trace=Tracer(config, dtype, freezing, lora, objective),
        tile=family.tile,
        kept_parts=kept_parts,
        kept_bytes=_kept_bytes(family, model, kept_parts) if family.tile and kept_parts else 0,
        vision_layer=_part(vision[0], len(vision)) if vision else NO_PART,
        projector=_part(family.part(model, "projector")) if vision else NO_PART,
        embedding=_part(embedding),
        decoder_layer=_part(layers[0], len(layers)),
        head=NO_PART if is_tied else _part(head),
        is_tied=is_tied,
        whole=_part(model),
        decoder_parameters=_part(decoder, without=_ids(embedding)).parameters,
        unused_parameters=sum(_part(part).parameters for part in kept),
        reader=_reader(objective, model),
        projection=None if projected is None else _part(projected),
    )


def _unplanned(config: PreTrainedConfig, reason: str) -> UserError:
    return UserError(f"a {config.model_type} model cannot be planned for: {reason}")


def _kept_bytes(family: Family, model: PreTrainedModel, kept_parts: Collection[str]) -> int:
    """Of what is kept of one tile."""
    tile = family.blank_tiles(1, torch.empty((), dtype=model.dtype, device="meta"))
    with torch.no_grad():
        kept = family.kept(model, tile, projected="projector" in kept_parts)
    return sum(tensor.nbytes for tensor in kept.values())


def _reader(objective_of: ObjectiveOf, model: PreTrainedModel) -> Reader | None:
    objective = objective_of(model)
    decoder = objective.runs(model) if objective is not None else None
    if objective is None or decoder is None:
        return None
    layers, others = find_layers(decoder, decoder.config.num_hidden_layers)[1], _ids(model)
    return Reader(
        _part(layers[0], len(layers)),
        _part(layers[0], len(layers), without=others),
        _part(objective, without=others | _ids(layers)),
    )


def _ids(module: nn.Module) -> set[int]:
    """Of its parameters."""
    return {id(parameter) for parameter in module.parameters()}


def _part(module: nn.Module, copies: int = 1, without: Collection[int] = ()) -> Part:
    """Args: without: ids of parameters that are not counted."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters() if id(p) not in without]
    return Part(
        sum(size for size, _ in sizes),
        sum(size for size, requires_grad in sizes if requires_grad),
        max((size for size, requires_grad in sizes if requires_grad), default=0),
        copies,
    )


def read_model_config(model_id: str, trust_remote_code: bool) -> PreTrainedConfig:
    """transformers' config of a hub id or of a directory, in which config.json suffices.

    Raises:
        UserError: there is none, or it is of a form that is not read.
    """
    try:
        check_form(model_id)
        config: PreTrainedConfig = AutoConfig.from_pretrained(model_id, trust_remote_code=trust_remote_code)
        return config
    except UserError as error:
        raise UserError(f"model_id {model_id!r}: {error}") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"model_id {model_id!r}: no model config can be read ({str(error).strip().splitlines()[0]}): give a "
            "directory with config.json, or a hub id that can be reached"
        ) from error
