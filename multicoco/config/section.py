"""What sections of the run config are made of; imports nothing of multicoco, so that methods can bring their own."""

import os
import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)
_MOST_EXPANSIONS = 10  # of variables that hold variables; more of them go in a circle


def expand(path: str) -> str:
    """A path as a shell would read it: `~`, `~user`, `$NAME` and `${NAME}` stand for what they name.

    A variable's value is expanded too, so that what comes out stays as it is when it is read again.

    Raises:
        ValueError: a variable or a user does not exist, or it is other shell syntax.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise ValueError(f"environment variable {name} is not set: set it, or write the path out")
        return os.environ[name]

    expanded, left = path, _MOST_EXPANSIONS
    while _VARIABLE.search(expanded):
        if not left:
            raise ValueError("its environment variables lead back to themselves: write the path out")
        expanded, left = _VARIABLE.sub(value, expanded), left - 1
    if any(syntax in expanded for syntax in ("${", "$(", "`")):
        raise ValueError("only $NAME, ${NAME} and ~ are expanded: write the rest out")
    if "\0" in expanded or expanded != expanded.strip():
        raise ValueError("a path must not begin or end with a space, nor hold a null character")
    if expanded.startswith("~"):
        expanded = os.path.expanduser(expanded)
        if expanded.startswith("~"):
            user = expanded[1:].partition("/")[0]
            raise ValueError(f"there is no user {user!r}: a path that begins with a literal ~ is written ./~")
    return expanded


NULLS = ("None", "none", "null", "")  # users of the original Coconut write `load_model_path: None`, YAML reads text


def _null(value: object) -> object:
    return None if value in NULLS else value


PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
OptionalStr = Annotated[str | None, BeforeValidator(_null)]
PathStr = Annotated[str, AfterValidator(expand)]
OptionalPath = Annotated[PathStr | None, BeforeValidator(_null)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),  # model_id is a key of ours
    )


class MethodKeys(Section):
    """A training method's section of the run config (`multicoco.methods`)."""

    def problems(self, config: Any) -> Iterator[str]:
        """What of this section does not go with the rest of the RunConfig, one sentence each, with what to do."""
        yield from ()

    def unread(self, config: Any) -> Iterator[tuple[str, frozenset[str], str]]:
        """Keys of which the RunConfig's training reads only a part, with those that say how much of it, and a sentence.
        Such a key may be inherited: it is refused where it is set together with the last of these, or after."""
        yield from ()
