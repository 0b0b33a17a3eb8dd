"""Timing in turns, and reports that keep every row from the moment it is measured."""

import gc
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from common import Geometry
from tqdm import tqdm

import multicoco
from multicoco.hardware import processor

_WIDTHS = {"way": 34, "case": 37, "goal": 72}  # columns of long texts


def machine() -> dict[str, str | int]:
    """What a result depends on beside the code."""
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "cuda": torch.version.cuda or "none",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "multicoco": multicoco.__version__,
        **{package: _version(package) for package in ("torch", "transformers", "deepspeed", "triton", "flash_attn")},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@dataclass(frozen=True)
class Timing:
    """Seconds of every timed run of a side, in the order of the turns."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return median(self.seconds)

    def over(self, other: "Timing", name: str) -> dict[str, float]:
        """The ratio of the medians under a name, and the lowest and highest of a turn: what is noise."""
        ratios = [mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True)]
        return {name: self.median / other.median, f"{name}_lowest": min(ratios), f"{name}_highest": max(ratios)}


class Report:
    """The rows and goals of a benchmark. Each row is printed and stored as soon as it is measured.

    Until `finish` they are in <name>.unfinished.json, so that an interrupted run keeps what it has, and leaves the
    results of the last whole run alone.
    """

    def __init__(self, name: str, geometry: Geometry | dict[str, Any], out: Path) -> None:
        self.name, self.path = name, out / f"{name}.json"
        settings = geometry if isinstance(geometry, dict) else asdict(geometry)
        self.rows: list[dict[str, Any]] = []
        self.goals: list[dict[str, Any]] = []
        self.timed: list[dict[str, list[float]]] = []  # what the rows are made of
        self.content = {"machine": machine(), "settings": settings, "rows": self.rows, "goals": self.goals}
        out.mkdir(parents=True, exist_ok=True)

    @property
    def unfinished(self) -> Path:
        return self.path.with_suffix(".unfinished.json")

    def in_turn(
        self, sides: dict[str, Callable[[], object]], repeats: int, between: Callable[[], object] = lambda: None
    ) -> dict[str, Timing]:
        """Times each side. They take turns, so that a slow phase of the machine meets all of them.

        Args:
            between: called after each, not timed.
        """
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        self.timed.append(seconds)
        pause = 0.1 if sys.stderr.isatty() else 30  # a log is not a terminal
        with tqdm(total=(repeats + 1) * len(sides), desc=self.name, leave=False, mininterval=pause) as bar:
            for run in range(repeats + 1):  # the first is a warm-up
                for name, side in sides.items():
                    bar.set_postfix_str(name, refresh=False)
                    gc.collect()
                    synchronize()
                    started = perf_counter()
                    side()
                    synchronize()
                    if run:
                        seconds[name].append(perf_counter() - started)
                        self._store()
                    between()
                    bar.update()
        return {name: Timing(times) for name, times in seconds.items()}

    def add(self, row: dict[str, Any]) -> None:
        _print_row(row, with_header=not self.rows or list(row) != list(self.rows[-1]))
        self.rows.append(row)
        self._store()

    def goal(self, what: str, aim: str, measured: float, met: bool) -> None:
        self.goals.append(
            {"goal": what, "aim": aim, "measured": float(f"{measured:.3g}"), "met": "yes" if met else "no"}
        )

    def finish(self) -> None:
        """Prints the goals; what is stored takes the place of the results before."""
        for index, goal in enumerate(self.goals):
            _print_row(goal, with_header=index == 0)
        self._write(self.content)
        self.unfinished.replace(self.path)
        print(f"\nwrote {self.path}", flush=True)

    def _store(self) -> None:
        self._write(self.content | {"timed": self.timed})

    def _write(self, content: dict[str, Any]) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(content, indent=2) + "\n")
        new.replace(self.unfinished)


def _print_row(row: dict[str, Any], with_header: bool) -> None:
    """A line of a table whose other rows are not known yet."""
    texts = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in row.items()}
    for cells in [dict(zip(row, row, strict=True))] * with_header + [texts]:
        line = "  ".join(text.ljust(max(len(key), _WIDTHS.get(key, 9))) for key, text in cells.items()).rstrip()
        print(line if cells is texts else f"\n{line}", flush=True)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
