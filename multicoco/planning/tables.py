"""The tables of docs/planning.md, InternVL3 in five sizes on three clusters: `python -m multicoco.planning.tables`."""

import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

from transformers import InternVLConfig

from multicoco.config import RunConfig
from multicoco.engine.assembly import model_dtype
from multicoco.errors import UserError
from multicoco.planning.candidates import HEADER, candidates, choose
from multicoco.planning.cost import Cluster
from multicoco.planning.geometry import ModelGeometry, Workload, geometry_of
from multicoco.planning.plan import markdown_table

# the published configs as far as they matter here; embeddings untied, with which the parameters come out as published
_VISION_300M = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "attention_bias": True,
}
_VISION_6B = {
    "hidden_size": 3200,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "norm_type": "rms_norm",
    "use_qk_norm": True,
}
_QWEN = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
INTERNVL3: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "InternVL3-1B": (_VISION_300M, (896, 24, 14, 2, 4864)),
    "InternVL3-2B": (_VISION_300M, (1536, 28, 12, 2, 8960)),
    "InternVL3-8B": (_VISION_300M, (3584, 28, 28, 4, 18944)),
    "InternVL3-38B": (_VISION_6B, (5120, 64, 40, 8, 27648)),
    "InternVL3-78B": (_VISION_6B, (8192, 80, 64, 8, 29568)),
}
GPUS, GPUS_PER_NODE, GPU_MEMORY = (8, 64, 512), 8, 80
GLOBAL_BATCH, TILES, PROMPT, LATENTS, WRITTEN = 512, 1, 128, 6, 64


def internvl3(name: str) -> InternVLConfig:
    """The geometry of one of the InternVL3 models, as far as memory and time depend on it."""
    vision, text = INTERNVL3[name]
    return InternVLConfig(
        vision_config=vision,
        text_config={
            "model_type": "qwen2",
            "vocab_size": 151674,
            "tie_word_embeddings": False,
            **dict(zip(_QWEN, text, strict=True)),
        },
        tie_word_embeddings=False,
    )


def table_config(examples_per_rank: int) -> RunConfig:
    """A run of the tables, with so many examples of the global batch on each rank."""
    keys: dict[str, Any] = {
        "mode": "coconut_train",
        "name": "table",
        "model_id": "table",
        "train_path": "table",
        "bf16": True,
        "batch_size": examples_per_rank,
        "coconut": {"enabled": True, "max_latent_stage": LATENTS, "first_stage": 1},
    }
    return RunConfig(**keys)


def _row(name: str, model: ModelGeometry, n_gpus: int) -> list[str]:
    """What `multicoco plan` would choose, or the smallest where nothing fits."""
    cluster = Cluster(n_gpus // GPUS_PER_NODE, GPUS_PER_NODE, GPU_MEMORY)
    work = Workload(TILES, PROMPT + TILES * model.tile_tokens, LATENTS, WRITTEN)
    found = candidates(table_config(GLOBAL_BATCH // n_gpus), model, [work], cluster)
    try:
        best = choose(found, cluster)
    except UserError:
        best = min(found, key=lambda candidate: candidate.memory.peak)
    return [name, str(n_gpus), *best.row(cluster)]


def tables(names: Iterable[str] = INTERNVL3) -> str:
    """The models' rows, as Markdown."""
    rows: list[list[str]] = []
    for name in names:
        config = table_config(1)
        model = geometry_of(internvl3(name), model_dtype(config), config.freeze.model_dump())
        size = f"{name} ({model.parameters / 1e9:.2f} B)"
        rows += map(partial(_row, size, model), GPUS)
    return markdown_table(["model", "GPUs", *HEADER], rows)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    print(tables())
