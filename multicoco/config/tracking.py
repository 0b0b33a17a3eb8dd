"""Where a run's numbers go beside its folder: the key `tracking`, and the section `wandb`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from multicoco.config.section import NonNegativeInt, OptionalStr, Section

TrackerName = Literal["jsonl", "wandb", "tensorboard"]


def _with_the_folder(names: list[TrackerName]) -> list[TrackerName]:
    return list(dict.fromkeys(["jsonl", *names]))


Tracking = Annotated[list[TrackerName], AfterValidator(_with_the_folder)]


class Wandb(Section):
    mode: Literal["online", "offline", "disabled"] = Field(
        "disabled",
        description="where Weights & Biases logs to; left out, online if tracking has wandb. online and offline put "
        "it there",
    )
    entity: OptionalStr = Field(None, description="W&B user or team")
    group: OptionalStr = Field(None, description="W&B group")
    tags: list[str] = Field([], description="W&B tags")
    samples: NonNegativeInt = Field(
        32, description="of each evaluation as trained, so many samples go to W&B as a table with their pictures"
    )


def agreed(keys: Any) -> Any:
    """The keys of a run config, with what `tracking` says of `wandb.mode`, and that of it."""
    tracking, wandb = keys.get("tracking", []), keys.get("wandb", {})
    given = wandb.model_dump(exclude_unset=True) if isinstance(wandb, Wandb) else wandb
    if not isinstance(tracking, list) or not isinstance(given, dict):  # which will be said
        return keys
    if given.get("mode") in ("online", "offline"):  # as configs of before `tracking` ask for it
        tracking = [*tracking, "wandb"]
    if "wandb" in tracking:
        given = {"mode": "online", **given}
    return {**keys, "tracking": tracking, "wandb": given}
