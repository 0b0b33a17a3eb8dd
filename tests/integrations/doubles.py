"""What the adapters take of the runners, for where these are not installed; held against them where they are
(test_lmms_eval.py, test_vlmevalkit.py)."""

import abc
import sys
from dataclasses import dataclass, field
from types import ModuleType

import pytest


class lmms(abc.ABC):  # its name
    is_simple = True

    def __init__(self) -> None:
        self.cache_hook = CacheHook()
        self.task_dict: dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None):
        given = dict(part.split("=", 1) for part in arg_string.split(","))
        return cls(**given, **{key: value for key, value in (additional_config or {}).items() if value is not None})


class CacheHook:
    def __init__(self, cachinglm=None) -> None:
        self.seen: list = []

    def add_partial(self, attr, req, res) -> None:
        self.seen.append((attr, req, res))


@dataclass
class Instance:
    request_type: str
    arguments: tuple
    idx: int
    metadata: dict = field(default_factory=dict)

    @property
    def args(self) -> tuple:
        return self.arguments


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class BaseModel:
    INTERLEAVE = False

    def __init__(self):
        self.dump_image_func = None

    def use_custom_prompt(self, dataset):
        return False

    def set_dump_image(self, dump_image_func):
        self.dump_image_func = dump_image_func

    def generate_inner(self, message, dataset=None):
        raise NotImplementedError

    def generate(self, message, dataset=None):
        return self.generate_inner(message, dataset)


LMMS_EVAL = {
    "lmms_eval.api.model": {"lmms": lmms},
    "lmms_eval.api.instance": {"Instance": Instance, "TokenCounts": TokenCounts, "GenerationResult": GenerationResult},
    "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
}
VLMEVALKIT = {"vlmeval.config": {"supported_VLM": {}}, "vlmeval.vlm.base": {"BaseModel": BaseModel}}


def stand_in(monkeypatch: pytest.MonkeyPatch, doubles: dict[str, dict], adapter: str) -> None:
    """Has an adapter, when it is imported, find doubles in the place of its runner's modules."""
    for name, content in doubles.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            module = ".".join(parts[:end])
            if module not in sys.modules or not hasattr(sys.modules[module], "__double__"):
                made = ModuleType(module)
                made.__double__ = True
                made.__path__ = []
                monkeypatch.setitem(sys.modules, module, made)
                if end > 1:
                    setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], made)
        for key, value in content.items():
            setattr(sys.modules[name], key, value)
    monkeypatch.delitem(sys.modules, adapter, raising=False)
