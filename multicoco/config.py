"""The run config: YAML files that inherit from each other, validated by a schema.

    config = load_config("args/aokvqa_cot.yaml", ["lr=1e-5"])

Light on purpose (no torch): `train.py --help` and `--print-config` answer at once.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from multicoco.errors import UserError

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
# users of the original Coconut write `load_model_path: None`, which YAML reads as text
OptionalStr = Annotated[str | None, BeforeValidator(lambda v: None if v in ("None", "none", "null", "") else v)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),  # model_id is a key of ours
    )


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


class Generation(Section):
    max_new_tokens: PositiveInt = Field(128, description="longest answer, in tokens")
    do_sample: bool = Field(False, description="sample instead of greedy or beam search")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling: probability mass to sample from")
    num_beams: PositiveInt = Field(1, description="beams of beam search; 1: none")


class Coconut(Section):
    enabled: bool = Field(False, description="reason with latent tokens")
    c_thought: PositiveInt = Field(1, description="latent tokens per replaced step")
    epochs_per_stage: PositiveInt | Annotated[list[PositiveInt], Field(min_length=1)] = Field(
        1, description="epochs of a stage; a list gives each stage its own from the first on, the last one repeats"
    )
    max_latent_stage: PositiveInt = Field(1, description="last stage that adds latent tokens")
    pad_latent_to_max: bool = Field(False, description="give examples with fewer steps max_latent_stage latents too")
    uniform_prob: float = Field(0.0, ge=0, le=1, description="probability that an example draws its stage uniformly")
    first_stage: NonNegativeInt | None = Field(
        None, description="stage of the first epoch; null: 1 with load_model_path (a CoT checkpoint), otherwise 0"
    )
    stage_lr: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] | None = Field(
        None, description="peak learning rate of each stage from the first on, the last one repeats; null: lr"
    )
    latent_init_token: OptionalStr = Field(
        None, description="token whose embedding the latent tokens start from; null: the tokenizer's eos"
    )


class EvalConfig(Section):
    cot: bool = Field(False, description="evaluate with written reasoning")
    coconut: bool = Field(False, description="evaluate with latent reasoning")
    vanilla: bool = Field(False, description="evaluate direct answers")
    eval_latent_tokens: NonNegativeInt | None = Field(None, description="latent tokens; null: as many as the stage has")


class Wandb(Section):
    mode: Literal["online", "offline", "disabled"] = Field("disabled", description="where Weights & Biases logs to")
    entity: OptionalStr = Field(None, description="W&B user or team")
    group: OptionalStr = Field(None, description="W&B group")
    tags: list[str] = Field([], description="W&B tags")


class RunConfig(Section):
    """Everything a run is made of. Frozen; see docs/config.md for all keys."""

    mode: Literal["cot_train", "coconut_train", "vanilla_train", "eval_only"] = Field(
        description="train with written reasoning, with latent reasoning, without reasoning; or only evaluate"
    )
    project: str = Field("multicoco", description="W&B project")
    name: str = Field(pattern=r"^[^/\\]*[^/\\.\s][^/\\]*$", description="name of the run, and of its folder")
    output_dir: str = Field("runs", description="folder of all runs")
    use_run_name_in_output_dir: bool = Field(True, description="the run's folder is output_dir/name, not output_dir")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of new weights, data order, stage mixing and sampling")
    resume: Literal["auto"] | bool | NonNegativeInt = Field(
        "auto",
        description="auto: go on from the run folder's newest whole checkpoint if there is one; true: there must be "
        "one; false: there must be none; N: none, and skip the first N epochs",
    )

    model_id: str = Field(min_length=1, description="Hugging Face directory or hub id")
    load_model_path: OptionalStr = Field(
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

    data_dir: str = Field(".", description="folder that train_path and val_path are relative to")
    image_dir: OptionalStr = Field(None, description="folder of the images; null: data_dir")
    train_path: OptionalStr = Field(None, description="JSON file of the training records")
    val_path: OptionalStr = Field(None, description="JSON file of the validation records")
    steps_from: Literal["sentences", "rationales"] = Field(
        "sentences", description="steps are the sentences of the first rationale, or the rationales"
    )
    answer_format: Literal["letter", "index", "text"] = Field("letter", description="how an answer names its choice")
    direct_instruction: str = Field("", description="last line of a question to be answered without reasoning")
    reasoning_instruction: str = Field("", description="last line of a question to be answered with reasoning")
    on_bad_record: Literal["error", "skip"] = Field(
        "error", description="a malformed record or image stops the run, or is left out"
    )
    max_train_samples: PositiveInt | None = Field(None, description="use only the first training records")
    max_val_samples: PositiveInt | None = Field(None, description="use only the first validation records")
    num_workers: NonNegativeInt = Field(2, description="processes per rank that load data")
    max_image_tiles: PositiveInt = Field(12, description="most tiles an image is cut into, the thumbnail not counted")

    num_epochs: PositiveInt = Field(1, description="passes over the training records, all stages together")
    batch_size: PositiveInt = Field(1, description="micro-batch per rank")
    eval_batch_size: PositiveInt = Field(1, description="batch per rank at evaluation")
    gradient_accumulation_steps: PositiveInt = Field(1, description="micro-batches per optimizer step")
    lr: float = Field(1e-5, gt=0, description="peak learning rate")
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
        True, description="start AdamW and the schedule again at each stage; false: one schedule over the whole run"
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

    generation: Generation = Generation()
    coconut: Coconut = Coconut()
    eval_config: EvalConfig = EvalConfig()
    wandb: Wandb = Wandb()
    deepspeed: str = Field("ds_configs/zero2.json", description="DeepSpeed config (JSON)")

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.name if self.use_run_name_in_output_dir else Path(self.output_dir)

    def to_yaml(self) -> str:
        """The resolved config; `load_config` reads it back."""
        return yaml.dump(self.model_dump(), Dumper=_Dumper, sort_keys=False)

    @model_validator(mode="after")
    def _refuse_impossible_combinations(self) -> Self:
        training, latent, evaluated = self.mode != "eval_only", self.coconut, self.eval_config
        most_latents = latent.max_latent_stage * latent.c_thought
        checks = [
            (
                self.mode == "coconut_train" and not latent.enabled,
                "mode is coconut_train but coconut.enabled is false: set it to true",
            ),
            (
                self.mode in ("cot_train", "vanilla_train") and latent.enabled,
                f"mode is {self.mode} but coconut.enabled is true: set it to false, or mode to coconut_train",
            ),
            (
                evaluated.coconut and not latent.enabled,
                "eval_config.coconut is true but coconut.enabled is false: set both to the same",
            ),
            (
                training and not self.train_path,
                f"mode is {self.mode} but train_path is null: name the training records",
            ),
            (
                not training and not self.val_path,
                "mode is eval_only but val_path is null: name the records to evaluate",
            ),
            (
                not training and not (evaluated.cot or evaluated.coconut or evaluated.vanilla),
                "mode is eval_only but none of eval_config.cot, .coconut and .vanilla is true: set one to true",
            ),
            (
                self.bf16 and self.fp16,
                "bf16 and fp16 are both true: set one of them to false",
            ),
            (
                training and self.save_only_improve and not self.val_path,
                "save_only_improve is true but val_path is null: set it to false, or name the validation records",
            ),
            (
                latent.enabled and (evaluated.eval_latent_tokens or 0) > most_latents,
                f"eval_config.eval_latent_tokens is {evaluated.eval_latent_tokens} but coconut.max_latent_stage * "
                f"coconut.c_thought is {most_latents}, the most the model is trained with: lower it",
            ),
            (
                self.mode in ("cot_train", "vanilla_train") and latent.uniform_prob > 0,
                f"coconut.uniform_prob is {latent.uniform_prob} but mode is {self.mode}, without stages: set it to 0",
            ),
            (
                latent.stage_lr is not None and not self.reset_optimizer,
                "coconut.stage_lr is set but reset_optimizer is false: without a restart there is one learning rate",
            ),
            (
                training and self.lora.rank is not None and self.freeze.language_model,
                f"lora.rank is {self.lora.rank} but freeze.language_model is true: set it to false, LoRA keeps the "
                "language model's own weights as they are",
            ),
            (
                training and all(self.freeze.model_dump().values()),
                "freeze.vision_tower, freeze.projector and freeze.language_model are all true "
                f"but mode is {self.mode}: leave one of them to train",
            ),
        ]
        if problems := [problem for impossible, problem in checks if impossible]:
            raise ValueError("\n  ".join(problems))
        return self


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key that stands twice in a mapping."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.append(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what _Loader would not read as text."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(  # 1e-4 is a number in YAML 1.2, but text in the 1.1 of PyYAML
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
        list("-+0123456789."),
    )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a run config, the files it inherits from and `key=value` overrides.

    A file names its parent with `inherits: other.yaml`, relative to itself; without it the `base.yaml` beside it is
    the parent, if there is one. Mappings merge key by key, everything else is replaced.

    Raises:
        UserError: one message with every problem: full key, where it was set, what is wrong, nearest valid key.
    """
    path = Path(path)
    merged: dict = {}
    origins: dict[str, str] = {}  # dotted key -> where it was set last
    for content, lines in _inheritance(path):
        _merge(merged, content)
        origins |= lines
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"--set {override}: write it as --set key=value")
        nested, _ = _parse(text, f"--set {override}")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(merged, nested)
        origins |= dict.fromkeys(_dotted(nested), f"--set {override}")
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        raise UserError("\n  ".join([f"{path} is not a valid run config:", *_describe(error, origins)])) from error
    in_repo = path.resolve().parent.parent / config.deepspeed
    if not Path(config.deepspeed).exists() and in_repo.exists():
        config = config.model_copy(update={"deepspeed": str(in_repo)})
    return config


def _inheritance(file: Path, heirs: tuple[Path, ...] = ()) -> list[tuple[dict, dict[str, str]]]:
    """Content and key origins of all that the file inherits from, the furthest first, and of the file itself."""
    content, origins = _read(file)
    chain = (*heirs, file)
    ancestor = content.pop("inherits", None)
    if ancestor is None:
        parent = file.parent / "base.yaml"
        if not parent.exists() or _is_in(parent, chain):
            return [(content, origins)]
    elif isinstance(ancestor, str):
        parent = file.parent / ancestor
        if _is_in(parent, chain):
            raise UserError(f"{chain[0]}: inherits in a circle: {' -> '.join(map(str, (*chain, parent)))}")
        if not parent.is_file():
            raise UserError(f"{origins['inherits']}: inherits {ancestor}, but there is no file {parent}")
    else:
        raise UserError(f"{origins['inherits']}: inherits must be the path of one YAML file (got {ancestor!r})")
    return [*_inheritance(parent, chain), (content, origins)]


def _is_in(file: Path, chain: Sequence[Path]) -> bool:
    return any(file.resolve() == other.resolve() for other in chain)


def _read(file: Path) -> tuple[dict, dict[str, str]]:
    """A file's content, and `file:line` of each of its dotted keys."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as a run config: {error}") from error
    content, node = _parse(text, str(file))
    if content is None:
        return {}, {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{file}: a run config is a mapping of keys to values")
    return content, {key: f"{file}:{line}" for key, line in _lines(node)}


def _parse(text: str, source: str) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text, and the node it was made from."""
    try:
        loader = _Loader(text)  # a SafeLoader: tags cannot build objects
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node), node
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 32nd of a month, for one
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}: not valid YAML{where}: {getattr(error, 'problem', None) or error}") from error


def _lines(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every dotted key of a YAML mapping with its line, counted from 1."""
    for key, value in node.value:
        yield f"{prefix}{key.value}", key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            yield from _lines(value, f"{prefix}{key.value}.")


def _dotted(content: dict, prefix: str = "") -> Iterator[str]:
    """Every dotted key of nested mappings."""
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def _merge(into: dict, update: dict) -> None:
    """Merges `update` into `into`: mappings key by key, everything else replaced."""
    for key, value in update.items():
        if isinstance(value, dict):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], value)
        else:
            into[key] = value


_CLEARER = {  # than pydantic's message of the type
    "model_type": "must be a mapping of keys",
    "tuple_type": "must be a list",
    "missing": "must have one entry more",
    "string_pattern_mismatch": "must be the name of a folder, without separators",
}


def _describe(error: ValidationError, origins: dict[str, str]) -> list[str]:
    """One line per wrong key, or per impossible combination of keys."""
    fields = dict(_keys(RunConfig))
    valid = [*fields, *{name.rpartition(".")[0] for name in fields if "." in name}]  # keys and sections
    problems_of: dict[str, list] = {}
    for problem in error.errors():
        if not problem["loc"]:  # from the schema's check of combinations, which names the keys itself
            return [str(problem["ctx"]["error"])]
        parts = [str(part) for part in problem["loc"]]
        prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        # pydantic goes on below the key, with members of unions and indices of lists
        key = prefixes[0] if problem["type"] == "extra_forbidden" else next(p for p in prefixes if p in valid)
        problems_of.setdefault(key, []).append(problem)
    lines = []
    for key, problems in problems_of.items():
        where = f"{key} ({origins[key]})" if key in origins else key
        if problems[0]["type"] == "extra_forbidden":
            meant = nearest(key, valid)
            lines.append(f"{where}: unknown key" + (f", did you mean {meant}?" if meant else ""))
        elif key not in origins:
            lines.append(f"{where}: missing, every run config needs it")
        else:
            wrong = [_CLEARER.get(p["type"], p["msg"].replace("Input should be", "must be")) for p in problems]
            lines.append(f"{where}: {' or '.join(dict.fromkeys(wrong))} (got {problems[0]['input']!r})")
    return lines


def nearest(key: str, valid: Sequence[str]) -> str | None:
    """The valid key most like this one, as a whole or by its last part: c_thougt is coconut.c_thought."""

    def likeness(name: str) -> tuple[float, float]:
        pairs = ((key, name), (key.rpartition(".")[2], name.rpartition(".")[2]))
        whole, last = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return max(whole, last), whole

    best = max(valid, key=likeness)
    return best if likeness(best)[0] >= 0.75 else None


def _keys(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of the schema with its field, sections left out."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " / ".join(get_args(annotation))
    if get_origin(annotation) in (UnionType, Union):
        return " or ".join(dict.fromkeys(map(_type_name, get_args(annotation))))
    if get_origin(annotation) in (list, tuple):
        return f"list of {_type_name(get_args(annotation)[0])}"
    return "null" if annotation is type(None) else annotation.__name__


def config_reference() -> str:
    """All keys as a Markdown table: docs/config.md."""
    lines = ["# Run config", "", "| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in _keys(RunConfig):
        default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
        lines.append(f"| `{key}` | {_type_name(field.annotation)} | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(config_reference(), end="")
