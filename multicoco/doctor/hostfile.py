"""DeepSpeed's hostfile: one `name slots=N` a line, whichever launcher DeepSpeed then starts the ranks with.

DeepSpeed reads no more of it (`_parse_hostfile` in deepspeed/launcher/runner.py), but `--launcher openmpi` hands the
file on to mpirun, which reads `max_slots=N` too. Both pass over comments, whole lines and behind an entry. What either
would leave unread, or take for something else than it says, is refused.
"""

import re
from pathlib import Path

from multicoco.errors import UserError

_ENTRY = re.compile(r"(\S+)\s+slots=([0-9]+)(?:\s+max[_-]slots=([0-9]+))?\s*(?:#.*)?")
_OF_MPICH = re.compile(r"([^\s:]+):([0-9]+)\s*(?:#.*)?")


def read_hostfile(path: Path) -> dict[str, int]:
    """The slots (processes, one for each GPU) of every host, in the file's order: the first one is the master.

    Raises:
        UserError: unreadable, a line of another form, a host that stands twice, no host at all.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"hostfile {path} cannot be read: {error}") from error
    if text.startswith("\ufeff"):
        raise UserError(
            f"{path}:1: starts with a byte-order mark, which DeepSpeed takes for a part of the name: save the file as "
            "UTF-8 without one"
        )
    slots: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        entry, of_mpich = _ENTRY.fullmatch(line), _OF_MPICH.fullmatch(line)
        if of_mpich:
            raise UserError(
                f"{path}:{number}: {line!r} is MPICH's form, which DeepSpeed reads for no launcher: write it as "
                f"`{of_mpich[1]} slots={of_mpich[2]}`"
            )
        if entry is None or int(entry[2]) == 0:
            raise UserError(
                f"{path}:{number}: {line!r} is no host to DeepSpeed: write it as `name slots=N`, N at least 1, with "
                "nothing behind but max_slots=N or a comment"
            )
        if entry[3] and int(entry[3]) < int(entry[2]):
            raise UserError(
                f"{path}:{number}: {line!r} has more slots than max_slots, with which mpirun does not start"
            )
        if entry[1] in slots:
            raise UserError(f"{path}:{number}: {entry[1]} stands twice: give it one line with all its slots")
        slots[entry[1]] = int(entry[2])
    if not slots:
        raise UserError(f"{path}: names no host: add a line `name slots=N` for each, or leave --hostfile out")
    return slots
