"""The keys of training records that are read as they are wanted (docs/data.md)."""

from pydantic import Field

from multicoco.config.section import PositiveInt, Section


class Streaming(Section):
    streaming: bool = Field(
        False,
        description="read the training records while training, none of them before: for sets that are too large to be "
        "read, verified or kept first ([data](data.md#streaming))",
    )
    stream_lanes: PositiveInt = Field(
        8,
        description="places of a stream that are read at a time, each row of a global batch from its own; at least as "
        "many as ranks, so that each reads a share",
    )
    shuffle_buffer: PositiveInt = Field(
        1000, description="records of a stream, of all lanes together, among which the order is random"
    )
