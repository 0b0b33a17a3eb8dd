from dataclasses import dataclass, field

import pytest

from multicoco.ask.asker import Answer
from multicoco.errors import UserError


@dataclass
class FakeAsker:
    """Writes what it is told to, and keeps what it was asked."""

    writes: str | None = "B"
    modes: tuple[str, ...] = ("vanilla", "cot", "coconut")
    asked: list = field(default_factory=list)
    limit: int | None = None

    def ask(self, image, question, mode=None, latents=None) -> Answer:
        self.asked.append((image, question, mode, latents))
        written = f"From red to blue.\nAnswer: {self.writes}" if self.writes else "Who knows"
        said = {"said": self.writes, "answer": self.writes and self.writes.lower()}
        return Answer(
            mode or "coconut", text=written, tokens=7, thoughts=latents or 4, seconds=0.1, truncated=False, **said
        )

    def limit_answers(self, max_new_tokens: int) -> None:
        self.limit = max_new_tokens


@pytest.fixture
def fake(monkeypatch) -> FakeAsker:
    """Stands in for every checkpoint, but one that is named "nowhere"."""
    asker = FakeAsker()

    def load(path, device=None):
        if str(path) == "nowhere":
            raise UserError("nowhere is no checkpoint")
        return asker

    monkeypatch.setattr("multicoco.integrations.checkpoint.load", load)
    return asker
