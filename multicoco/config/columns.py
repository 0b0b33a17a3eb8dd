"""The section `columns`, of a run config and of each set of a mixture."""

from pydantic import Field

from multicoco.config.section import OptionalStr, Section


class Columns(Section):
    id: OptionalStr = Field(None, description="column of the ids")
    question: OptionalStr = Field(None, description="column of the questions")
    choices: OptionalStr = Field(None, description="column of the lists of choices")
    steps: OptionalStr = Field(None, description="column of the reasoning: a list of steps, or a text (`steps_from`)")
    answer: OptionalStr = Field(None, description="column of the answers: a text, a number, a choice or its index")
    images: OptionalStr = Field(None, description="column of the images, one or a list")

    @property
    def named(self) -> dict[str, str]:
        """What of a record is under which name."""
        return {key: column for key, column in self.model_dump().items() if column is not None}
