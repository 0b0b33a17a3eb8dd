"""What the data pipeline, the latent passes and the planner ask of a model family."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from multicoco.data.collate import ImageInputs
from multicoco.errors import UserError
from multicoco.registry import load_all


def nothing_further(columns: slice) -> dict[str, Any]:
    """Of a model whose images enter by their embeddings alone."""
    return {}


@dataclass(frozen=True)
class Embedded:
    """A batch as the decoder takes it.

    Attributes:
        embeds: (B, T, D), image features in place.
        further: of a pass over columns of the batch, given with start and stop, what else the decoder takes, by the
            names of its arguments: such as features that are added after some of its layers.
    """

    embeds: Tensor
    further: Callable[[slice], dict[str, Any]] = nothing_further


@dataclass(frozen=True)
class Tile:
    """What one image tile, the unit in which images are counted, is on its way through a model.

    Attributes:
        shape: its pixels, (channels, height, width), as many numbers as the model is given of them.
        patches: columns in the vision tower, of `width` numbers each.
        width: see `patches`.
        tokens: columns in the language model.
    """

    shape: tuple[int, int, int]
    patches: int
    width: int
    tokens: int


class Family:
    """A kind of model, by its transformers config. Here: a decoder-only language model that sees no images.

    Attributes:
        auto_model: transformers' class that loads it.
        sees_images: whether it takes images.
        keeps_features: whether it can be given what is `kept` of images.
        input_names: what its forward takes beside the tokens, which the collator batches and the engine moves.
        beside_features: those of input_names that are asked for although features are given: what positions are made
            from.
        host_inputs: those of them that are small and that it reads on the host: they stay there in training, and are
            asked for although what the vision tower has made is given.
        other_forms: model types of the same weights in a form that is not read, and what is to be given instead.
        parts: the keys of `freeze` beside language_model, and the submodules of the base model that each stands for; a
            family that sees images has vision_tower and projector.
    """

    auto_model: ClassVar[Any] = AutoModelForCausalLM
    sees_images: ClassVar[bool] = False
    keeps_features: ClassVar[bool] = False
    input_names: ClassVar[tuple[str, ...]] = ()
    beside_features: ClassVar[tuple[str, ...]] = ()
    host_inputs: ClassVar[tuple[str, ...]] = ()
    other_forms: ClassVar[dict[str, str]] = {}
    parts: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __init__(self, config: PreTrainedConfig):
        self.config = config

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        """Whether a model of this config is one of the family."""
        raise NotImplementedError

    @property
    def is_proven(self) -> bool:
        """Whether tests hold such a model against transformers. Where none does, every run does at its start."""
        return False

    # data: in the loader's workers, without the model

    def load_image_processor(self, source: str, max_image_tiles: int, **options: Any) -> Any:
        """transformers' image processor; None for a family that sees none. Raises as `from_pretrained`."""
        return None

    def read_images(self, images: Sequence[Image.Image], image_processor: Any) -> ImageInputs:
        """RGB pictures as tokens and tensors; how many tokens, the pictures' sizes alone say."""
        return ImageInputs()

    def content(self, text: str, n_images: int) -> str | list[dict[str, str]]:
        """A user's turn for the chat template: the images, in their order, then the text."""
        return text

    def place_images(self, ids: list[int], tokens: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The template's ids, (T,), with the one token of each image expanded as `ImageInputs.tokens` says.

        Raises:
            UserError: the template does not show every image once.
        """
        return ids

    def batch(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The `ImageInputs.tensors` of a batch's rows, or what is `kept` of them, as the model takes them; empty if no
        row has any."""
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: torch.cat([row[name] for row in rows if name in row]) for name in names}

    # model: in every step, on the device

    def position_ids(self, input_ids: Tensor, attention_mask: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """(B, T) tokens and mask -> positions as the decoder takes them, (B, T) counted from each row's first token,
        or with further axes in front."""
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)

    def embed(
        self, model: PreTrainedModel, input_ids: Tensor, inputs: dict[str, Tensor], on_host: Tensor | None = None
    ) -> Embedded:
        """(B, T) tokens and a batch's `ImageInputs.tensors` -> what the decoder takes. Calls the same modules whatever
        the batch holds, as ZeRO-3 needs.

        Args:
            on_host: the tokens once more, on the CPU: with them, nothing is read from the device.
        """
        embedding: nn.Module = model.get_input_embeddings()
        return Embedded(embedding(input_ids))

    def own_inputs(self, input_ids: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the model's own forward takes beside (B, T) tokens and mask, which the latent passes are held against:
        a batch's `ImageInputs.tensors` and what its own positions are made from."""
        return inputs

    # model: its parts, for freezing and for the planner

    def part(self, model: PreTrainedModel, name: str) -> nn.Module:
        """A part by its key of `freeze`: the language model, without its head, or one of `parts`.

        Raises:
            UserError: the model has no such part.
        """
        if name == "language_model":
            decoder: nn.Module = model.get_decoder()
            return decoder
        try:
            return nn.ModuleList(model.base_model.get_submodule(path) for path in self.parts[name])
        except (KeyError, AttributeError) as error:
            raise UserError(f"freeze: {self.config.model_type} has no {name}; set it to false") from error

    def with_layers(self, layers: int) -> PreTrainedConfig:
        """A copy of the config with so many layers in the language model, and in every tower."""
        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        return config

    @property
    def tile(self) -> Tile | None:
        """None for a family that sees no images; for one whose images have no tiles, what it counts them in."""
        return None

    def written(self, n_tiles: int) -> Any:
        """Of an image of so many tiles, what `ImageInputs.tokens` has for it. Only for a family that sees images."""
        assert self.tile is not None
        return n_tiles * self.tile.tokens

    def most_tiles(self, max_image_tiles: int) -> int | None:
        """Of an image, by the key of the run config; None where that does not say."""
        return max_image_tiles

    def vision_layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The layers of the vision tower, all of a kind; none for a family that sees no images."""
        return ()

    def image_features(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
        """A batch's `ImageInputs.tensors` -> (..., D) features in the order of the image tokens, D the language model's
        width.

        Only for a family that sees images, as `blank_tiles`.
        """
        raise NotImplementedError

    def kept(self, model: PreTrainedModel, inputs: dict[str, Tensor], projected: bool) -> dict[str, Tensor]:
        """A batch's `ImageInputs.tensors` -> what of them can be kept and given in their place, by the names of
        `names_kept`. All its tensors have rows that belong to an image each, in the order of the images.

        Args:
            projected: under FEATURES, (N, L, D) features of N image tokens. Else under SEEN what the projector makes
                them from: as many rows as there are of pixels, (N, L, ...).

        Only for a family that `keeps_features`, as `names_kept`.
        """
        raise NotImplementedError

    def names_kept(self, projected: bool) -> list[str]:
        """Of what is `kept`: FEATURES and `beside_features`, or SEEN and `host_inputs`."""
        raise NotImplementedError

    def project(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
        """A batch's inputs as they are `kept` without being projected -> features, those of `image_features` and then
        any others, shaped likewise; of a blank picture, where what is kept is of no image.

        Only for a family that `keeps_features`.
        """
        raise NotImplementedError

    def columns_of_images(
        self, input_ids: Tensor, tokens: Sequence[Any], tokenizer: PreTrainedTokenizerBase
    ) -> list[Tensor]:
        """Of each image of a row (T,), the columns that its features are in; tokens as of `ImageInputs`. Only for a
        family that sees images."""
        raise NotImplementedError

    def laid_out(self, columns: Tensor, tensors: dict[str, Tensor], image: int) -> Tensor | None:
        """Of an image's columns (N,), those that show the whole of it, (rows, columns) as they lie in it; the others
        are its tiles, if it is cut. None where it is not known. `image` is its number among `ImageInputs.tensors`."""
        return None

    def blank_tiles(self, n_tiles: int, like: Tensor) -> dict[str, Tensor]:
        """`ImageInputs.tensors` of so many tiles that are 0 all over, of the dtype and device of `like`."""
        raise NotImplementedError

    def smallest_picture(self, like: Tensor) -> dict[str, Tensor]:
        """`ImageInputs.tensors` of a blank picture that is as little work as there can be; `like` as for
        `blank_tiles`."""
        return self.blank_tiles(1, like)


class Embedding(nn.Module):
    """`Family.embed` as a module, which ZeRO-3 can be told to give parameters: those that a model holds itself, beside
    its modules, and makes image features with outside of its forward."""

    def forward(
        self,
        family: Family,
        model: PreTrainedModel,
        input_ids: Tensor,
        inputs: dict[str, Tensor],
        on_host: Tensor | None = None,
    ) -> tuple[Tensor, Callable[[slice], dict[str, Any]]]:
        """The attributes of `Embedded`; of a tuple, DeepSpeed's hooks find the tensors."""
        embedded = family.embed(model, input_ids, inputs, on_host)
        return embedded.embeds, embedded.further


class Keeping(nn.Module):
    """`Family.kept` as a module, for the same reason as `Embedding`."""

    def forward(
        self, family: Family, model: PreTrainedModel, inputs: dict[str, Tensor], projected: bool
    ) -> dict[str, Tensor]:
        return family.kept(model, inputs, projected)


def check_form(source: str) -> None:
    """What is known of a model's form before its config, which may ask for code of its own, is read.

    Raises:
        UserError: there is another form of it, which a family takes.
    """
    try:
        raw, _ = PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError):  # which will be said when it is read
        return
    for family in load_all("families").values():
        if instead := family.other_forms.get(raw.get("model_type")):
            raise UserError(f"is a {raw['model_type']} model, with code of its own: give {instead}")


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a model's config: the first one that takes it.

    Raises:
        UserError: none does.
    """
    families = load_all("families")
    for family in families.values():
        if family.matches(config):
            found: Family = family(config)
            return found
    raise UserError(
        f"a {config.model_type} model is of no family that is supported ({', '.join(families)}), and has not the usual "
        "interface of one that sees: give another model (docs/models.md), or add a family (docs/contributing.md)"
    )
