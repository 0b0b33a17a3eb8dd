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
from multicoco.models.families import check_form, family_of
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


class ModelGeometry:
    """The parts of a model in the order of the data flow, and traces of its layers.

    Args:
        config: transformers' config of a model of any family.
        dtype: of the parameters.
        freezing, lora: as in the run config.
        objective: as of `Method.objective`; what it runs besides the passes is `reader`.
        projection: as of `Method.projection`.
        kept_parts: keys of `freeze` of the parts that no step calls, because what they make of images is kept
            (`features: cache`): none, the vision tower, or the projector too.

    Raises:
        UserError: the model is of another kind, or has not the parts that `freezing` names.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        dtype: torch.dtype,
        freezing: dict[str, bool],
        objective: ObjectiveOf = no_objective,
        kept_parts: Collection[str] = (),
        lora: Lora | None = None,
        projection: Callable[[PreTrainedModel], nn.Module | None] = no_objective,
    ):
        self.config = config
        self.text = config.get_text_config()
        self.dtype = dtype
        family = family_of(config)
        self.tile = family.tile
        if family.sees_images and self.tile is None:
            raise UserError(
                f"a {config.model_type} model cannot be planned for: its family does not say what an image is on its "
                "way through it"
            )
        self.trace = Tracer(config, dtype, freezing, lora, objective)
        model = meta_model(config, dtype, freezing, lora)
        decoder = model.get_decoder()
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        of_embedding = {id(parameter) for parameter in embedding.parameters()}
        self.is_tied = any(id(parameter) in of_embedding for parameter in head.parameters())
        self.embedding = _part(embedding)
        self.head = Part(0, 0, 0) if self.is_tied else _part(head)
        self.decoder_layer = _part(self._layers(decoder)[0], self.text.num_hidden_layers)
        self.encoded = None if kept_parts else self.tile  # what of images a step encodes
        self.projects_kept = self.tile is not None and bool(kept_parts) and "projector" not in kept_parts
        self.vision_layer = self.projector = Part(0, 0, 0, 0)
        if layers := family.vision_layers(model):
            self.vision_layer, self.projector = _part(layers[0], len(layers)), _part(family.part(model, "projector"))
        self.parameters = sum(p.numel() for p in model.parameters())
        unused = [p for name in kept_parts if name in family.parts for p in family.part(model, name).parameters()]
        self.called_parameters = self.parameters - sum(p.numel() for p in unused)  # in a step
        self.kept_bytes = 0  # of what is kept of one tile
        if kept_parts and self.tile is not None:
            tile = family.blank_tiles(1, torch.empty((), dtype=dtype, device="meta"))
            with torch.no_grad():
                kept = family.kept(model, tile, projected=not self.projects_kept)
            self.kept_bytes = sum(tensor.nbytes for tensor in kept.values())
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.decoder_parameters = sum(p.numel() for p in decoder.parameters()) - self.embedding.parameters
        self.largest = max(p.numel() for p in model.parameters() if p.requires_grad)
        self.reader = self._reader(objective, model)
        with torch.device("meta"):
            projected = projection(model)
        beside = [self.reader.own, self.reader.rest] if self.reader else []
        beside += [] if projected is None else [_part(projected)]
        saved = self.parameters  # in what is saved to be used
        self.saved_parameters = saved if projected is None else saved + beside[-1].parameters
        for part in beside:
            self.parameters += part.copies * part.parameters
            self.called_parameters += part.copies * part.parameters
            self.trainable += part.copies * part.trainable
            self.largest = max(self.largest, part.largest)

    def _reader(self, objective_of: ObjectiveOf, model: PreTrainedModel) -> Reader | None:
        objective = objective_of(model)
        decoder = objective.runs(model) if objective is not None else None
        if objective is None or decoder is None:
            return None
        layers = find_layers(decoder, decoder.config.num_hidden_layers)[1]
        others = {id(parameter) for parameter in model.parameters()}
        of_layers = {id(parameter) for parameter in layers.parameters()}
        return Reader(
            _part(layers[0], len(layers)),
            _part(layers[0], len(layers), without=others),
            _part(objective, without=others | of_layers),
        )

    def _layers(self, decoder: nn.Module) -> nn.ModuleList:
        try:
            return find_layers(decoder, self.text.num_hidden_layers)[1]
        except ValueError as error:
            raise UserError(f"a {self.config.model_type} model cannot be planned for: {error}") from error

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
