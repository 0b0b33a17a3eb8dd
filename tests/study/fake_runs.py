"""Evaluated run folders, as `Tracker.log_evaluation` leaves them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multicoco.evaluation.metrics import summarize


def sample(name: str, correct: bool | None, **parts: Any) -> dict[str, Any]:
    about = {"question": f"What is {name}?", "choices": ["a", "b"], "gold": 0, "extracted": 0}
    return {"id": name, "correct": correct, "new_tokens": 2, "latent_passes": 0, "truncated": False, **about, **parts}


def write_samples(run: Path, mode: str, samples: Sequence[Mapping[str, Any]], name: str = "final") -> Path:
    for folder in ("evaluation", "samples"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in samples)
    (run / "samples" / f"{name}_{mode}.jsonl").write_text(lines, encoding="utf-8")
    summary = {"mode": mode, **summarize(samples), "seconds": 1.0}  # type: ignore[arg-type]
    (run / "evaluation" / f"{mode}.json").write_text(json.dumps(summary))
    return run


def write_run(run: Path, mode: str, answers: str, first: int = 0, **parts: Any) -> Path:
    """`answers`: + and - and, for one whose answer is not known, a question mark."""
    known = {"+": True, "-": False, "?": None}
    samples = [sample(f"q{place}", known[mark], **parts) for place, mark in enumerate(answers, start=first)]
    return write_samples(run, mode, samples)


def started() -> list[str]:
    """The runs that fake_train.py has done since the last call, as arm/seed_S/run without digests."""
    path = Path("started.txt")
    lines = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    parts = [Path(line).parts[-3:] for line in lines]
    return [f"{arm.split('-')[0]}/{seed}/{run.split('-')[0]}" for arm, seed, run in parts]
