"""All keys of a run config: the engine's own, and a section for each training method that has keys.

Light on purpose (no torch): `train.py --help` and `--print-config` answer at once.
"""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, create_model, model_validator
from pydantic.fields import FieldInfo

from multicoco.config.combinations import PUBLISHED_MODES, contradictions, pointless
from multicoco.config.data import Data
from multicoco.config.dialect import dump
from multicoco.config.efficiency import Efficiency
from multicoco.config.evaluation import EvalConfig, Generation
from multicoco.config.names import folder_name, registered
from multicoco.config.rates import Rates
from multicoco.config.section import (
    Beta,
    MethodKeys,
    NonNegativeInt,
    OptionalPath,
    OptionalStr,
    PathStr,
    PositiveInt,
    Section,
    expand,
)
from multicoco.config.streaming import Streaming
from multicoco.config.tracking import Tracking, Wandb, agreed
from multicoco.errors import UserError
from multicoco.registry import load_all


class Freeze(Section):
    vision_tower: bool = Field(False, description="keep the vision tower as it is")
    projector: bool = Field(False, description="keep the multi-modal projector as it is")
    language_model: bool = Field(False, description="keep the language model and its head as they are")


class Lora(Section):
    rank: PositiveInt | None = Field(
        None,
        description="rank of adapters that train the language model in the place of its own weights (LoRA, Hu et al. "
        "2021, arXiv:2106.09685); null: train the weights themselves",
    )
    alpha: float = Field(16.0, gt=0, description="the adapters' output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapters' input")
    target_modules: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="linear layers of the language model that get one, such as q_proj; null: all but the head"
    )


class _Start(Section):
    """The engine's keys above those of the data."""

    mode: Literal["cot_train", "coconut_train", "vanilla_train", "train", "eval_only"] = Field(
        description="train with written reasoning, with latent reasoning, without reasoning, with the method of "
        "`method`; or only evaluate"
    )
    method: Annotated[OptionalStr, AfterValidator(partial(registered, "methods"))] = Field(
        None,
        description="training method by its registered name; null: the one that mode names, and for eval_only the "
        "first that eval_config names",
    )
    project: str = Field("multicoco", description="W&B project")
    name: Annotated[str, AfterValidator(folder_name)] = Field(description="name of the run, and of its folder")
    output_dir: PathStr = Field("runs", description="folder of all runs")
    use_run_name_in_output_dir: bool = Field(True, description="the run's folder is output_dir/name, not output_dir")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of new weights, data order, stage mixing and sampling")
    resume: Literal["auto"] | bool | NonNegativeInt = Field(
        "auto",
        description="auto: go on from the run folder's newest whole checkpoint if there is one; true: there must be "
        "one; false: there must be none; N: none, and skip the first N epochs",
    )

    model_id: Annotated[str, Field(min_length=1), AfterValidator(expand)] = Field(
        description="Hugging Face directory or hub id"
    )
    load_model_path: OptionalPath = Field(
        None,
        description="weights to start from: a run folder (its best checkpoint), a checkpoint, a model directory, "
        "a hub id, or a state dict file of the original Coconut (`base_causallm.*`), for the model of model_id",
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    freeze: Freeze = Freeze()
    lora: Lora = Lora()
    activation_checkpointing: bool = Field(False, description="recompute activations in backward: less memory")
    kernel: Literal["auto", "reference", "cpu", "triton", "flash"] = Field(
        "auto", description="implementation of the cached attention: auto is `cpu` on CPUs, `triton` or `flash` on GPUs"
    )
    cuda_graphs: bool = Field(
        True,
        description="on GPUs, record the training passes over single latent columns and replay them: faster, for some "
        "memory; needs the kernel `triton`, and is left out under ZeRO-3",
    )


class _First(Data, _Start):
    """The engine's keys above the sections of the methods."""

    self_check: bool = Field(
        True,
        description="at the start, compare the latent engine with the model's own forward pass on a short and a long "
        "example",
    )

    num_epochs: PositiveInt = Field(1, description="passes over the training records, all stages together")
    batch_size: PositiveInt = Field(1, description="micro-batch per rank")
    eval_batch_size: PositiveInt = Field(1, description="batch per rank at evaluation")
    gradient_accumulation_steps: PositiveInt = Field(1, description="micro-batches per optimizer step")
    lr: Rates = Field(
        1e-5,
        description="peak learning rate; or one for each part that trains: {vision_tower: 1e-6, projector: 1e-4, "
        "language_model: 1e-5, new_tokens: 1e-4}, of which new_tokens, the rows of the latent tokens, may be left out "
        "([training](training.md#learning-rates-by-part))",
    )
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay of AdamW")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), strict=False, description="the two betas of AdamW")
    max_grad_norm: float = Field(
        1.0, ge=0, description="largest norm of the gradient, clipped beyond it; 0: no clipping"
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="course of the learning rate after warm-up"
    )
    warmup_steps: NonNegativeInt = Field(
        0, description="optimizer steps of linear warm-up, at each start of the schedule"
    )
    bf16: bool = Field(False, description="train in bfloat16 with fp32 master weights")
    fp16: bool = Field(False, description="train in float16 with loss scaling")
    max_skipped_steps: PositiveInt = Field(
        20, description="so many steps in a row that were skipped, their gradient not being finite, end training"
    )
    reset_optimizer: bool = Field(
        True,
        description="start AdamW and the schedule again at each stage (icot: AdamW alone); false: one schedule over "
        "the whole run",
    )

    save_every_steps: PositiveInt | None = Field(
        None, description="save within an epoch too, every so many optimizer steps of the run"
    )
    save_only_improve: bool = Field(False, description="at the end of an epoch, save only when accuracy improves")
    asynchronous_save: bool = Field(
        True, description="training goes on while a checkpoint is written, from a copy of the state in the CPU's memory"
    )
    on_save_error: Literal["stop", "continue"] = Field(
        "stop", description="what training does when a checkpoint could not be written"
    )
    preemption_grace_seconds: PositiveInt = Field(
        30, description="time from SIGTERM or SIGUSR1 to the end; a save that took longer is warned of"
    )
    lost_rank_seconds: Annotated[int, Field(ge=10)] = Field(
        120, description="a rank of which nothing is heard for so long ends the run on all hosts"
    )
    max_checkpoints_to_keep: PositiveInt = Field(3, description="newest checkpoints that stay")
    keep_best_checkpoints: Annotated[
        NonNegativeInt, BeforeValidator(lambda v: int(v) if isinstance(v, bool) else v)
    ] = Field(1, description="best checkpoints by accuracy that stay as well, at least one; true: 1, false: 0")
    eval_every_epochs: PositiveInt = Field(1, description="evaluate after every so many epochs, and after the last")
    log_every_steps: PositiveInt = Field(10, description="optimizer steps between log entries")
    report: bool = Field(
        True, description="at its end a run writes report.html into its folder, if matplotlib is installed"
    )

    generation: Generation = Generation()


class _Last(Section):
    """The engine's keys below the sections of the methods."""

    eval_config: EvalConfig = EvalConfig()
    tracking: Tracking = Field(
        ["jsonl"],
        description="where a run's numbers go: jsonl, which is always among them, is metrics.jsonl in its folder",
    )
    wandb: Wandb = Wandb()
    deepspeed: PathStr = Field("ds_configs/zero2.json", description="DeepSpeed config (JSON)")


@cache
def method_sections() -> dict[str, type[MethodKeys]]:
    """The sections that training methods bring, each with its keys; methods that share a section share these.

    Raises:
        UserError: a section's name is taken, or one of its keys has no default.
    """
    sections: dict[str, type[MethodKeys]] = {}
    methods = load_all("methods").items()
    for name, method, section, keys in [(*named, *own) for named in methods for own in named[1].sections().items()]:
        where = f"method {name!r}, {method.__module__}.{method.__qualname__}: its section of the run config, {section}"
        if section in _First.model_fields | _Last.model_fields or sections.setdefault(section, keys) != keys:
            raise UserError(f"{where}, has other keys already: give it another name")
        if required := [key for key, field in keys.model_fields.items() if field.is_required()]:
            raise UserError(f"{where}, needs a default for {', '.join(required)}")
    return sections


if TYPE_CHECKING:
    _WithMethods = _First
else:
    _WithMethods = create_model(
        "_WithMethods", __base__=_First, **{name: (keys, keys()) for name, keys in method_sections().items()}
    )


class RunConfig(Streaming, Efficiency, _Last, _WithMethods):
    """Everything a run is made of. Frozen; see docs/config.md for all keys."""

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.name if self.use_run_name_in_output_dir else Path(self.output_dir)

    def to_yaml(self) -> str:
        """The resolved config; `load_config` reads it back."""
        return dump(self.model_dump())

    @property
    def trained_method(self) -> str:
        """The registered name of the method that trains, or has trained."""
        if self.method is not None:
            return self.method
        return PUBLISHED_MODES.get(self.mode) or next(iter(self.eval_config.named_methods), "vanilla")

    @model_validator(mode="before")
    @classmethod
    def _agree(cls, keys: Any) -> Any:
        return agreed(keys)

    @model_validator(mode="after")
    def _refuse_impossible_combinations(self) -> Self:
        problems = [*contradictions(self), *pointless(self)]
        if self.mode != "train" or self.method:
            for section in method_sections():
                problems += getattr(self, section).problems(self)
        if problems:
            raise ValueError("\n  ".join(problems))
        return self


def all_keys(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of the schema with its field, sections left out."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from all_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field
