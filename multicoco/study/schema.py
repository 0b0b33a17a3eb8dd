"""The schema of study.json."""

from typing import Any, Literal

from pydantic import Field

from multicoco.config.section import Section

UNTOUCHED = "untouched"


class RunResult(Section):
    """An arm of one seed on one test set; untouched, or under an intervention."""

    arm: str
    seed: int
    test: str
    intervention: str = Field(description="as it is written in a run config, or untouched")
    folder: str = Field("", description="of this evaluation, within the study's folder")
    accuracy: float | None
    n: int
    ci95: tuple[float, float] = Field(description="Wilson's")
    chance: float | None = Field(description="what guessing gives")
    mean_new_tokens: float | None
    mean_latent_passes: float | None
    steps: int = Field(description="optimizer steps, with those of the arms it started from")
    tokens: int = Field(description="trained on, all ranks, with those of the arms it started from")
    passes: int = Field(description="of the language model in training, forward, on each rank, with theirs")
    peak_memory: int = Field(description="bytes of the rank that took the most, in training this arm")
    train_seconds: float = Field(description="of this arm alone, start and evaluations included")
    evaluation_seconds: float


class PairResult(Section):
    """Two arms, or an arm and itself under an intervention, over the seeds that both have."""

    kind: Literal["arms", "intervention"]
    test: str
    first: str
    second: str
    difference: float = Field(description="of the accuracies, first less second, the mean over the seeds")
    ci95: tuple[float, float]
    p: float
    p_holm: float = Field(description="over all pairs of its kind")
    n: int
    seeds: list[int]
    by_seed: list[float]
    p_by_seed: list[float] = Field(description="McNemar's exact test")
    gained: list[int] = Field(description="questions that the first alone answers correctly, by seed")
    lost: list[int]


class StudyResult(Section):
    format: Literal[1] = 1
    name: str
    file: str = Field(description="the study's YAML")
    arms: list[str]
    spec: dict[str, Any] = Field(description="its content, defaults filled in")
    environments: list[dict[str, Any]] = Field([], description="versions and hardware, of each training with its own")
    runs: list[RunResult]
    pairs: list[PairResult]
    refused: list[str] = Field(description="what was not compared, or not read by the rule, and why")
    verdict: dict[str, Any] = Field(description="see verdict.py: finding, readings, conditions, besides")
    text: str = Field(description="what `multicoco study` prints")
