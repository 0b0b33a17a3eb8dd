"""The keys by which nothing is computed twice, and less for padding (docs/performance.md)."""

from typing import Literal

from pydantic import Field

from multicoco.config.section import OptionalPath, Section


class Efficiency(Section):
    features: Literal["cache"] | None = Field(
        None,
        description="cache: what a frozen vision tower, and a frozen projector behind it, make of an image is computed "
        "once and kept in files; null: whenever the image is seen",
    )
    features_dir: OptionalPath = Field(
        None, description="folder of the kept features, which all hosts see; null: output_dir/features"
    )
    group_by_length: bool = Field(
        False,
        description="batches of examples that are about as long as each other, in random order: less padding "
        "(docs/performance.md)",
    )
