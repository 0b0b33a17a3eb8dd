"""Learning rates: one of all that trains, or one for each part."""

from typing import Annotated, Literal

from pydantic import Field

Part = Literal["vision_tower", "projector", "language_model", "new_tokens"]
Rate = Annotated[float, Field(gt=0)]
Rates = Rate | dict[Part, Rate]
