"""What this machine is."""

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """The CPU's name as Linux has it, with family and model: a cloud may hide the name. Elsewhere its architecture."""
    lines = _CPUINFO.read_text(errors="replace").splitlines() if _CPUINFO.exists() else []
    cpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    kind = [f"{key} {cpu[key]}" for key in ("cpu family", "model") if key in cpu]
    return ", ".join([cpu.get("model name", platform.machine()), *kind])
