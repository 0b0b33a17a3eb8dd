"""The run config: YAML files that inherit from each other, validated by a schema.

    config = load_config("args/aokvqa_cot.yaml", ["lr=1e-5"])

Light on purpose (no torch): `train.py --help` and `--print-config` answer at once.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from multicoco.errors import UserError

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
# users of the original Coconut write `load_model_path: None`, which YAML reads as text
OptionalStr = Annotated[str | None, BeforeValidator(lambda v: None if v in ("None", "none", "null", "") else v)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, protected_namespaces=())


class Freeze(Section):
    vision_tower: bool = Field(False, description="keep the vision tower as it is")
    projector: bool = Field(False, description="keep the multi-modal projector as it is")
    language_model: bool = Field(False, description="keep the language model and its head as they are")


class Generation(Section):
    max_new_tokens: PositiveInt = Field(128, description="longest answer, in tokens")
    do_sample: bool = Field(False, description="sample instead of greedy or beam search")
    temperature: float = Field(1.0, gt=0, description="of sampling")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of sampling")
    num_beams: PositiveInt = Field(1, description="beams of beam search")


class Coconut(Section):
    enabled: bool = Field(False, description="reason with latent tokens")
    c_thought: PositiveInt = Field(1, description="latent tokens per replaced step")
    epochs_per_stage: PositiveInt | list[PositiveInt] = Field(
        1, description="epochs of a stage; a list gives each stage its own from the first on, the last one repeats"
    )
    max_latent_stage: PositiveInt = Field(1, description="last stage that adds latent tokens")
    pad_latent_to_max: bool = Field(False, description="give examples with fewer steps max_latent_stage latents too")
    uniform_prob: float = Field(0.0, ge=0, le=1, description="probability that an example draws another stage")
    first_stage: NonNegativeInt | None = Field(
        None, description="stage of the first epoch; null: 1 with load_model_path (a CoT checkpoint), otherwise 0"
    )
    latent_init_token: OptionalStr = Field(
        None, description="token whose embedding the latent tokens start from; null: end of text"
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
    name: str = Field(min_length=1, pattern=r"^[^/\\]+$", description="name of the run")
    output_dir: str = Field("runs", description="folder of all runs")
    use_run_name_in_output_dir: bool = Field(True, description="the run's folder is output_dir/name, not output_dir")
    seed: NonNegativeInt = Field(0, description="of weights, order, mixing and sampling")
    resume: bool | NonNegativeInt = Field(
        False, description="true: go on from the run folder's latest checkpoint; N: skip the first N epochs"
    )

    model_id: str = Field(min_length=1, description="Hugging Face directory or hub id")
    load_model_path: OptionalStr = Field(
        None,
        description="weights to start from: a run folder (its best checkpoint), a checkpoint, or a model directory",
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    freeze: Freeze = Field(Freeze(), description="")
    activation_checkpointing: bool = Field(False, description="recompute activations in backward: less memory")
    kernel: Literal["auto", "reference"] = Field("auto", description="implementation of the cached attention")

    data_dir: str = Field(".", description="folder of train_path and val_path")
    image_dir: OptionalStr = Field(None, description="folder of the images; null: data_dir")
    train_path: OptionalStr = Field(None, description="JSON file of the training records")
    val_path: OptionalStr = Field(None, description="JSON file of the validation records")
    steps_from: Literal["sentences", "rationales"] = Field(
        "sentences", description="steps are the sentences of the first rationale, or the rationales"
    )
    answer_format: Literal["letter", "index", "text"] = Field("letter", description="how an answer names its choice")
    direct_instruction: str = Field("", description="last line of a question to be answered without reasoning")
    reasoning_instruction: str = Field("", description="last line of a question to be answered with reasoning")
    on_bad_record: Literal["error", "skip"] = Field("error", description="what a malformed record or image does")
    max_train_samples: PositiveInt | None = Field(None, description="use only the first ones")
    max_val_samples: PositiveInt | None = Field(None, description="use only the first ones")
    num_workers: NonNegativeInt = Field(2, description="processes per rank that load data")
    max_image_tiles: PositiveInt = Field(12, description="most tiles an image is cut into, the thumbnail not counted")

    num_epochs: PositiveInt = Field(1, description="passes over the training records, all stages together")
    batch_size: PositiveInt = Field(1, description="micro-batch per rank")
    eval_batch_size: PositiveInt = Field(1, description="batch per rank at evaluation")
    gradient_accumulation_steps: PositiveInt = Field(1, description="micro-batches per optimizer step")
    lr: float = Field(1e-5, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), strict=False, description="of AdamW"
    )
    max_grad_norm: float = Field(1.0, ge=0, description="gradient clipping; 0: none")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after warm-up")
    warmup_steps: NonNegativeInt = Field(0, description="optimizer steps of linear warm-up")
    bf16: bool = Field(False, description="train in bfloat16 with fp32 master weights")
    fp16: bool = Field(False, description="train in float16 with loss scaling")
    reset_optimizer: bool = Field(
        True, description="start AdamW and the schedule again at each stage; false: one schedule over the whole run"
    )

    save_only_improve: bool = Field(False, description="save only when accuracy improves")
    max_checkpoints_to_keep: PositiveInt = Field(3, description="newest checkpoints that stay")
    keep_best_checkpoints: Annotated[
        NonNegativeInt, BeforeValidator(lambda v: int(v) if isinstance(v, bool) else v)
    ] = Field(1, description="checkpoints that stay besides, best by accuracy")
    eval_every_epochs: PositiveInt = Field(1, description="evaluate after every so many epochs, and after the last")
    log_every_steps: PositiveInt = Field(10, description="optimizer steps between log entries")

    generation: Generation = Field(Generation(), description="")
    coconut: Coconut = Field(Coconut(), description="")
    eval_config: EvalConfig = Field(EvalConfig(), description="")
    wandb: Wandb = Field(Wandb(), description="")
    deepspeed: str = Field("ds_configs/zero2.json", description="DeepSpeed config (JSON)")

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.name if self.use_run_name_in_output_dir else Path(self.output_dir)

    def to_yaml(self) -> str:
        """The resolved config; `load_config` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @model_validator(mode="after")
    def _refuse_impossible_combinations(self) -> Self:
        training, ev, coconut = self.mode != "eval_only", self.eval_config, self.coconut
        evaluates = ev.cot or ev.coconut or ev.vanilla
        most_latents = coconut.max_latent_stage * coconut.c_thought
        impossible = {
            "mode is coconut_train but coconut.enabled is false: set it to true": (
                self.mode == "coconut_train" and not coconut.enabled
            ),
            f"mode is {self.mode} but coconut.enabled is true: set it to false, or mode to coconut_train": (
                self.mode in ("cot_train", "vanilla_train") and coconut.enabled
            ),
            "eval_config.coconut is true but coconut.enabled is false: set it to true": ev.coconut
            and not coconut.enabled,
            f"mode is {self.mode} but train_path is null: name the training records": training and not self.train_path,
            "mode is eval_only but val_path is null: name the records to evaluate": not training and not self.val_path,
            "mode is eval_only but eval_config has none of cot, coconut and vanilla: set one to true": (
                not training and not evaluates
            ),
            "bf16 and fp16 are both true: set one of them to false": self.bf16 and self.fp16,
            "save_only_improve is true but val_path is null: without an evaluation nothing improves": (
                training and self.save_only_improve and not self.val_path
            ),
            f"eval_config.eval_latent_tokens is {ev.eval_latent_tokens} but coconut.max_latent_stage * "
            f"coconut.c_thought is {most_latents}: the model never saw more": (
                coconut.enabled and (ev.eval_latent_tokens or 0) > most_latents
            ),
            "coconut.uniform_prob is above 0 but mode is not coconut_train: it mixes the stages of training": (
                training and coconut.uniform_prob > 0 and self.mode != "coconut_train"
            ),
            "freeze.vision_tower, freeze.projector and freeze.language_model are all true: nothing is left to train": (
                training and all(self.freeze.model_dump().values())
            ),
        }
        problems = [problem for problem, holds in impossible.items() if holds]
        if problems:
            raise ValueError("; ".join(problems))
        return self


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number, as YAML 1.2 does, and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} stands twice", node.start_mark)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: tags cannot build objects
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a run config, the files it inherits from and `key=value` overrides.

    A file names its parent with `inherits: other.yaml`, relative to itself; without it the `base.yaml` beside it is
    the parent, if there is one. Mappings merge key by key, everything else is replaced.

    Raises:
        UserError: one message with every problem: full key, where it was set, what is wrong, nearest valid key.
    """
    path = Path(path)
    merged: dict = {}
    origins: dict[str, str] = {}
    for file in reversed(_inheritance(path)):
        _merge(merged, origins, _read(file), str(file))
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise UserError(f"--set {override}: write it as --set key=value")
        nested = _parse(value, f"--set {override}")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(merged, origins, nested, f"--set {override}")
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        problems = [_describe(problem, origins) for problem in error.errors()]
        raise UserError("\n  ".join([f"{path} is not a valid run config:", *problems])) from error
    in_repo = path.resolve().parent.parent / config.deepspeed
    if not Path(config.deepspeed).exists() and in_repo.exists():
        config = config.model_copy(update={"deepspeed": str(in_repo)})
    return config


def _inheritance(path: Path) -> list[Path]:
    """The file and what it inherits from, nearest first."""
    chain = [path]
    while True:
        file = chain[-1]
        base = file.with_name("base.yaml")
        parent = _read(file, keep_inherits=True).get("inherits")
        if parent is None:
            if file.resolve() == base.resolve() or not base.exists():
                return chain
            parent = base.name
        if not isinstance(parent, str):
            raise UserError(f"{file}: inherits must be the path of a YAML file, not {parent!r}")
        following = file.parent / parent
        if following.resolve() in [seen.resolve() for seen in chain]:
            raise UserError(f"{path}: inherits in a circle: {' -> '.join(map(str, [*chain, following]))}")
        chain.append(following)


def _read(file: Path, keep_inherits: bool = False) -> dict:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as a run config: {error}") from error
    content = {} if (parsed := _parse(text, str(file))) is None else parsed
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{file}: a run config is a mapping of keys to values")
    return content if keep_inherits else {key: value for key, value in content.items() if key != "inherits"}


def _merge(into: dict, origins: dict[str, str], update: dict, source: str, prefix: str = "") -> None:
    """Merges `update` deeply into `into` and notes where each dotted key was set."""
    for key, value in update.items():
        origins[f"{prefix}{key}"] = source
        if isinstance(value, dict) and isinstance(into.get(key, {}), dict):
            _merge(into.setdefault(key, {}), origins, value, source, f"{prefix}{key}.")
        else:
            into[key] = value


def _describe(problem: dict, origins: dict[str, str]) -> str:
    """One line for one of pydantic's errors."""
    parts = [str(part) for part in problem["loc"]]
    known = [i for i in range(len(parts), 0, -1) if ".".join(parts[:i]) in origins]
    key = ".".join(parts[: known[0]]) if known else ".".join(parts)
    where = f" ({origins[key]})" if key in origins else ""
    if problem["type"] == "extra_forbidden":
        valid = [name for name, _ in _keys(RunConfig)]
        leaves = {name.rpartition(".")[2]: name for name in reversed(valid)}
        nearest = difflib.get_close_matches(key, valid, n=1) or [
            leaves[leaf] for leaf in difflib.get_close_matches(parts[-1], leaves, n=1)
        ]
        return f"{key}{where}: unknown key" + (f", did you mean {nearest[0]}?" if nearest else "")
    if problem["type"] == "missing" and not known:
        return f"{key}: missing, every run config needs it"
    if not parts:  # an impossible combination, which names its keys itself
        return str(problem["ctx"]["error"])
    return f"{key}{where}: {problem['msg']}, not {problem['input']!r}"


def _keys(model: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of the schema with its pydantic field."""
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
    if isinstance(annotation, UnionType) or str(get_origin(annotation)) == "typing.Union":
        return " or ".join(dict.fromkeys(map(_type_name, get_args(annotation))))
    if get_origin(annotation) in (list, tuple):
        return f"list of {_type_name(get_args(annotation)[0])}"
    return "null" if annotation is type(None) else annotation.__name__


def config_reference() -> str:
    """All keys as a Markdown table: docs/config.md."""
    lines = ["# Run config", "", "| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in _keys(RunConfig):
        default = (
            "required"
            if field.is_required()
            else yaml.safe_dump(
                list(field.default) if isinstance(field.default, tuple) else field.default, default_flow_style=True
            )
            .removesuffix("...\n")
            .strip()
        )
        lines.append(f"| `{key}` | {_type_name(field.annotation)} | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(config_reference(), end="")
