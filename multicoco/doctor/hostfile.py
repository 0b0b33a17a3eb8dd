"""DeepSpeed's hostfile: one `name slots=N` a line."""

import re
from pathlib import Path

from multicoco.errors import UserError

_ENTRY = re.compile(r"(\S+)\s+slots=(\d+)(\s+#.*)?")


def read_hostfile(path: Path) -> dict[str, int]:
    """The slots (processes, one for each GPU) of every host, in the file's order: the first one is the master.

    Raises:
        UserError: unreadable, a line of another form, a host that stands twice, no host at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"hostfile {path} cannot be read: {error}") from error
    slots: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        entry = _ENTRY.fullmatch(line)
        if entry is None or int(entry[2]) == 0:
            raise UserError(f"{path}:{number}: {line!r} is no host: write it as `name slots=N`, N at least 1")
        if entry[1] in slots:
            raise UserError(f"{path}:{number}: {entry[1]} stands twice: give it one line with all its slots")
        slots[entry[1]] = int(entry[2])
    if not slots:
        raise UserError(f"{path}: names no host: add a line `name slots=N` for each, or leave --hostfile out")
    return slots
