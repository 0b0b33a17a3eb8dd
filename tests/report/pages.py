"""A run folder to report on, and a page in a real browser."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fake_runs import write_samples
from PIL import Image

from multicoco.engine.trainer_state import TrainerState
from multicoco.evaluation.thoughts import Norms, Thoughts

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "end of script": "</script><img src=x onerror=alert(2)>",
    "comment": "<!--<script>",
    "template": "{{ 7 * 7 }} {% raw %} ${7*7}",
    "formula": "$\\frac{1}{2}$ and a $",
    "long": "w" * 100_000,
    "right to left": "\u202eמה זה؟\u202c",
    "emoji": "👩‍👩‍👧 🏳️‍🌈",
    "line separator": "a\u2028b",
    "half a character": "\ud83d",
    "control": "a\x00\x07b",
}


def write_training(run: Path, epochs_by_stage: Sequence[int] = (2, 3), steps: int = 5, **config: Any) -> Path:
    """As a training leaves it: a config, metrics, an evaluation after every epoch, a checkpoint."""
    run.mkdir(parents=True, exist_ok=True)
    total = sum(epochs_by_stage)
    keys = {"mode": "coconut_train", "name": run.name, "output_dir": "runs", "num_epochs": total, "model_id": "tiny"}
    data = {"train_path": "train.json", "val_path": "val.json"}
    method = {"coconut": {"enabled": True, "first_stage": 1}}
    (run / "config.yaml").write_text(yaml.safe_dump(keys | data | method | config))
    environment = {"git": {"commit": "a" * 40, "dirty": True}, "torch": "2", "host": "h", "command": "train.py x.yaml"}
    (run / "environment.json").write_text(json.dumps(environment))
    lines, step, epoch = [], 0, 0
    for stage, epochs in enumerate(epochs_by_stage, start=1):
        for _ in range(epochs):
            epoch += 1
            for _ in range(steps):
                step += 1
                where = {"step": step, "time": 1000.0 + step, "train/stage": stage, "train/epoch": epoch}
                lines.append(where | {"train/loss": 1 / step, "train/lr": 1e-3, "train/tokens_per_s": 100.0 + step})
            about = {"step": step, "time": 1000.0 + step}
            lines.append(about | {"train/epoch_seconds": 60.0, "train/epoch": epoch})
            lines.append(about | {"eval/coconut/accuracy": 0.5 + epoch / 2 / total, "eval/coconut/n": 100})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checkpoint = run / "checkpoints" / f"epoch_{epoch:04d}"
    checkpoint.mkdir(parents=True)
    state = TrainerState(epoch, len(epochs_by_stage), step, accuracy=1.0, evaluated=True, method="coconut")
    (checkpoint / "trainer.json").write_text(json.dumps(asdict(state)))
    return run


def write_questions(folder: Path, n: int, with_pictures: bool = True) -> list[dict[str, Any]]:
    """val.json in a folder, with questions q0, q1, ... of one to three steps; returns the records."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for place in range(n):
        steps = [f"step {step} of {place}" for step in range(1 + place % 3)]
        record = {"id": f"q{place}", "question": f"What is q{place}?", "choices": ["a", "b"], "answer": "a"}
        if with_pictures:
            Image.new("RGB", (300, 200), (place % 256, 90, 90)).save(folder / f"{place % 7}.png")
            record["image"] = f"{place % 7}.png"
        records.append({**record, "steps": steps})
    (folder / "val.json").write_text(json.dumps(records))
    return records


def write_answers(run: Path, mode: str, rights: Sequence[bool | None], **parts: Any) -> Path:
    """Of the questions of `write_questions`."""
    samples = [
        {
            **{"id": f"q{place}", "question": f"What is q{place}?", "choices": ["a", "b"], "gold": 0},
            **{"extracted": None if right is None else int(not right), "correct": bool(right)},
            **{"generated": f"Answer: {place}", "new_tokens": 2, "latent_passes": 0, "truncated": right is None},
            **parts,
        }
        for place, right in enumerate(rights)
    ]
    return write_samples(run, mode, samples)


def write_touched(run: Path, mode: str, name: str, intervention: str, rights: Sequence[bool], **parts: Any) -> Path:
    """The same questions with something done to the thoughts."""
    write_answers(run, f"{mode}.{name}", rights, **parts)
    path = run / "evaluation" / f"{mode}.{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intervention": intervention, "mode": mode}))
    return run


def write_thoughts(run: Path, mode: str, n: int) -> Path:
    """What was seen in two thoughts of each question of `write_questions`: "step" reads like step 1, then "go"."""
    counts = {"first": range(0, 2 * n + 1, 2), "gold_first": range(2 * n + 1), "n": [n, n]}
    of_each = {"step": [1, 0] * n, "norm": [2.5, 3.5] * n, "top_ids": [[7, 8], [8, 7]] * n}
    more = {"top_probabilities": [[0.9, 0.1], [0.6, 0.4]] * n, "cosines": [[1, 0.5], [0.5, 1]] * n}
    gold = {"gold_ids": [7] * 2 * n, "gold_ranks": [1, 4] * n}
    of_all = {"effective_rank": [1.5, 3], "mean_similarity": [0.9, 0.2]}
    thoughts = Thoughts(
        about={"mode": mode, "stage": 1},
        questions=tuple(f"q{place}" for place in range(n)),
        words={7: " step", 8: "<go>"},
        embedding=Norms(1.25, {0.5: 1.2}),
        **{name: np.array(values) for name, values in (counts | of_each | more | gold | of_all).items()},
    )
    path = run / "thoughts" / f"final_{mode}.safetensors"
    path.parent.mkdir()
    path.write_bytes(thoughts.to_bytes())
    return run


@dataclass
class Opened:
    """A page that a browser shows.

    Attributes:
        page: playwright's.
        session: of Chromium's own protocol.
        said: on its console, errors among it.
        requests: to anywhere but the file and what is in it.
    """

    page: Any
    session: Any
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def busy(self) -> float:
        """Seconds of a core that the page has taken so far: with others on the machine a clock tells something else."""
        metrics = self.session.send("Performance.getMetrics")["metrics"]
        return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.page.locator(selector).all_inner_texts()
        return found


@contextmanager
def opened(browser: Any, file: Path, width: int = 1600, scheme: str = "light") -> Iterator[Opened]:
    """Opens a file without a network. Whatever it did, no request and no error is left when it is closed."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    shown = Opened(page, context.new_cdp_session(page))
    shown.session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.on("console", lambda message: shown.said.append(message.text))
    page.on("pageerror", lambda error: shown.said.append(str(error)))
    page.on("dialog", lambda dialog: (shown.said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: request.url.startswith("data:") or shown.requests.append(request.url))
    page.goto(file.as_uri())
    yield shown
    assert not shown.said and shown.requests == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
