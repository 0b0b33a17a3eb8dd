"""CODI (Shen et al. 2025, arXiv:2502.21074): one model writes its reasoning and thinks it, in one step, and the hidden
states with which it comes to answer are to be the same. No curriculum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from multicoco.config.section import MethodKeys
from multicoco.curriculum import IGNORE_INDEX, Branch, ExampleTokens, StageSchedule, Supervision, layout
from multicoco.methods.coconut import Coconut
from multicoco.methods.method import Extent, method_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from multicoco.config import RunConfig
    from multicoco.latent.objective import Objective


class CODIKeys(MethodKeys):
    teacher_weight: float = Field(1.0, ge=0, description="of the loss of the written reasoning, alpha")
    student_weight: float = Field(1.0, ge=0, description="of the loss of the answer after the thoughts, beta")
    distillation_weight: float = Field(
        1.0, ge=0, description="of the distance between the hidden states of the two, gamma; the authors' 20 for Llama"
    )

    def problems(self, config: RunConfig) -> Iterator[str]:
        if not issubclass(method_class(config.trained_method), CODI):
            return
        keys, named = CODI(config).keys, f"method is {config.trained_method}"
        if not keys.c_thought:
            yield f"{named} but coconut.c_thought is 0: the student would not think, raise it"
        if keys.thoughts == "borrowed":
            yield f"{named} but coconut.thoughts is borrowed: a row has its teacher beside it, not a donor"
        last = keys.max_latent_stage + 1
        if keys.first_stage not in (None, last):
            yield (
                f"{named} but coconut.first_stage is {keys.first_stage}: it has no curriculum, its one stage is "
                f"the last, {last}; leave it at null"
            )
        if keys.uniform_prob:
            yield f"{named} but coconut.uniform_prob is {keys.uniform_prob}: it has one stage, set it to 0"
        if not self.student_weight and not self.distillation_weight:
            yield "codi.student_weight and codi.distillation_weight are both 0: nothing would teach the student"
        if not self.teacher_weight and not self.distillation_weight:
            yield (
                "codi.teacher_weight and codi.distillation_weight are both 0: nothing would come of the teacher's "
                f"pass, without which this is coconut with coconut.first_stage {last}"
            )


class CODI(Coconut):
    """Coconut's rows in its last stage, with teachers as branches: after the question, all written steps, answer."""

    own_section = "codi"
    OwnKeys: ClassVar[type[MethodKeys]] = CODIKeys
    needs_steps = True

    def _schedule(self) -> StageSchedule:
        schedule = super()._schedule()
        return replace(schedule, first_stage=schedule.max_latent_stage + 1)

    def supervision(self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str) -> Supervision:
        question, (ids, labels) = len(tokens.prompt), layout(tokens, n_replaced=0, latent_block=())
        teacher = Branch(question, ids[question:], labels[question:])
        return Supervision(branch=teacher, answer=len(tokens.answer) - tokens.answer_prefix)

    def passes(self, stage: int) -> int:
        return super().passes(stage) + 1  # the teachers'

    def further_rows(
        self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str
    ) -> dict[str, tuple[list[int], list[int]]]:
        return {"as its teacher": layout(tokens, n_replaced=0, latent_block=())}

    def extent(self, tokens: ExampleTokens, stage: int) -> Extent:
        taught = sum(map(len, tokens.steps)) + len(tokens.answer)
        return super().extent(tokens, stage)._replace(shared=len(tokens.prompt), branch=taught)

    def objective(self, model: PreTrainedModel) -> Objective:
        from multicoco.latent.distillation import SelfDistillation

        weights = self.section_of(CODIKeys)
        return SelfDistillation(weights.teacher_weight, weights.student_weight, weights.distillation_weight)

    def counts(self, batch: dict[str, Any]) -> list[int]:
        """Labelled tokens of students and of teachers, and examples."""
        is_labelled, fork = batch["labels"] != IGNORE_INDEX, batch["supervision"]["fork"]
        student, teacher = (int(way.sum()) for way in (is_labelled[:, 1 : fork.branch], is_labelled[:, fork.branch :]))
        return [student, teacher, int(batch["supervision"]["counted"].sum())]
