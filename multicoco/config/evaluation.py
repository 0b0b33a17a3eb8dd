"""Keys of an evaluation: what is asked, and how answers are written and judged."""

from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from multicoco.config.names import registered
from multicoco.config.section import NonNegativeInt, PositiveInt, Section
from multicoco.interventions import parse, split_specs

Inputs = Literal["all", "question_only", "choices_only", "other_image"]
# the published keys of methods; the one with thoughts first, as it has the larger vocabulary
PUBLISHED_METHODS = ("coconut", "cot", "vanilla")


def _specs(value: object) -> object:
    """`[zero, only(3, mean)]` as it is meant: YAML splits it at the comma in brackets too."""
    return split_specs(value) if isinstance(value, list) and all(isinstance(part, str) for part in value) else value


def _known_interventions(specs: list[str]) -> list[str]:
    parsed = [str(parse(spec)) for spec in specs]
    if twice := [spec for spec in parsed if parsed.count(spec) > 1]:
        raise ValueError(f"{twice[0]} is listed twice: leave one out")
    return parsed


class Generation(Section):
    max_new_tokens: PositiveInt = Field(128, description="longest answer, in tokens")
    do_sample: bool = Field(False, description="sample instead of greedy or beam search")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling: probability mass to sample from")
    num_beams: PositiveInt = Field(1, description="beams of beam search; 1: none")


class EvalConfig(Section):
    cot: bool = Field(False, description="evaluate with written reasoning")
    coconut: bool = Field(False, description="evaluate with latent reasoning")
    vanilla: bool = Field(False, description="evaluate direct answers")
    methods: list[Annotated[str, AfterValidator(partial(registered, "methods"))]] = Field(
        [],
        description="evaluate by methods of these registered names, such as [icot, cot]; the three keys above are "
        "short for theirs",
    )
    eval_latent_tokens: NonNegativeInt | None = Field(None, description="latent tokens; null: as many as the stage has")
    think_then_write: NonNegativeInt | None = Field(
        None,
        description="as eval_latent_tokens, and reasoning must be written after them: the text may not begin with the "
        "answer (docs/evaluation.md); null: the model may do as it likes",
    )
    interventions: Annotated[list[str], BeforeValidator(_specs), AfterValidator(_known_interventions)] = Field(
        [],
        description="what is done to the thoughts while they are thought, each for all questions again "
        "(docs/interventions.md): zero, mean, mean_by_step, noise, perturb(0.3), first, permute, swap(2), transplant, "
        "other_input, mask, cut(1), extend(9), only(3, mean)",
    )
    likelihoods: bool = Field(
        False,
        description="also measure how likely the right answer and each choice are; always done with interventions",
    )
    inputs: Inputs = Field(
        "all",
        description="what of a question is asked: all; no images; the choices alone; with another question's images "
        "(docs/evaluation.md)",
    )
    answer_by: Literal["generation", "likelihood"] = Field(
        "generation", description="the answer is read out of generated text, or is the likeliest choice"
    )
    thoughts: bool = Field(
        False,
        description="also write what is in the thoughts: norms, the words that the head reads in them, cosines, and "
        "how much they differ between questions (docs/lens.md)",
    )
    thoughts_top_k: PositiveInt = Field(10, description="words written for each thought")

    @property
    def named_methods(self) -> list[str]:
        """Those that are asked for, each once."""
        return [*dict.fromkeys([*(name for name in PUBLISHED_METHODS if getattr(self, name)), *self.methods])]

    def asks_by(self, name: str) -> str:
        """In which words one of them is asked for."""
        return f"eval_config.methods has {name}" if name in self.methods else f"eval_config.{name} is true"

    @property
    def asked_thoughts(self) -> int | None:
        """As many thoughts as are asked for, whatever the stage has."""
        return self.eval_latent_tokens if self.think_then_write is None else self.think_then_write

    @property
    def measures_likelihoods(self) -> bool:
        return self.likelihoods or bool(self.interventions) or self.answer_by == "likelihood"
