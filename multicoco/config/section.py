"""What sections of the run config are made of; imports nothing of multicoco, so that methods can bring their own."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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
