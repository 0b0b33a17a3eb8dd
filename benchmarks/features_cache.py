"""What an epoch costs with what is kept of images, against encoding every image again; the vision tower is frozen.

InternVL3-1B's sizes with one layer of 24 in each part, and as much less vocabulary, so that the parts cost in the
proportion they have: photographs read from files, cut into tiles, encoded or looked up, one step of AdamW a batch. The
first epoch, in which features are computed and written, is told apart. Kinds of epoch, as users have them: the whole
language model trains; LoRA on it; the projector alone, run on what the tower has made; and asking, the prompts alone.

What bounds the ratio is the tower's share, in the column `bound`: multiplications of an epoch with the tower over those
without it. A training step is three forward passes of what trains, and two of what gradients only go through. A tile
is 1,025 columns of a tower of 300 M parameters but only 256 of a language model of 360 M, of which one forward pass is
then 3.9 times cheaper. So without any text a step of InternVL3-1B becomes (3.9 + 3) / 3 = 2.3 times as fast at the most
if the whole language model trains, (3.9 + 2) / 2 = 2.9 times with LoRA or with the projector alone, and less with text;
an evaluation (3.9 + 1) / 1 = 4.9 times. Reading, decoding and cutting photographs come on top, and are left out of it.
"""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from common import InternVL3Geometry, parser
from measuring import Report
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from multicoco.config import RunConfig
from multicoco.curriculum import layout
from multicoco.data.collate import Collator
from multicoco.data.example import Example
from multicoco.data.loader import RankBatches, ReasoningDataset, make_loader
from multicoco.engine.assembly import encoder_of
from multicoco.engine.features import Features
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.backbone import Backbone
from multicoco.models.freezing import freeze
from multicoco.models.lora import add_lora
from multicoco.models.tiny import build_tokenizer

SCALED = {"layers": 1, "vision_layers": 1, "vocabulary": 151_674 // 24, "batch": 4}
SIZE = (640, 480)  # pixels of a photograph


def photographs(folder: Path, n: int) -> list[Example]:
    random = np.random.default_rng(0)
    examples = []
    for i in range(n):
        path = folder / f"{i}.jpg"
        small = random.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize(SIZE).save(path, quality=90)
        steps = tuple(f"{word} red blue tile is the ball in the box next to it now" for word in ("one", "two", "three"))
        examples.append(Example(str(i), "which tile is the ball in the box next to", (path,), (), steps, "red", None))
    return examples


@dataclass(frozen=True)
class Kind:
    """Of epoch.

    Attributes:
        frozen: beside the vision tower.
        forwards: what a step costs, in forward passes of the language model.
    """

    name: str
    frozen: tuple[str, ...]
    forwards: int
    has_lora: bool = False

    @property
    def freezing(self) -> dict[str, bool]:
        return dict.fromkeys(("vision_tower", *self.frozen), True)


KINDS = (
    Kind("training", ("projector",), 3),
    Kind("training, LoRA", ("projector",), 2, has_lora=True),
    Kind("training, projector alone", ("language_model",), 2),
    Kind("asking", ("projector",), 1),
)


def bound(geometry: InternVL3Geometry, kind: Kind, tiles: int, columns: int, labels: int) -> float:
    """Of one example, by multiplications."""
    seen, width, patches = geometry.vision_hidden, geometry.hidden, (geometry.tile_size // 14) ** 2 + 1
    tower = tiles * geometry.vision_layers * (12 * seen**2 * patches + 2 * patches**2 * seen)
    projector = tiles * geometry.tile_tokens * (4 * seen * width + width**2)
    keys = 2 * width * geometry.kv_heads * geometry.head_dim
    layer = columns * (2 * width**2 + keys + 3 * width * geometry.intermediate) + columns**2 * width
    language = geometry.layers * layer + labels * geometry.vocabulary * width
    runs_projector = "projector" not in kind.frozen
    kept = kind.forwards * (language + runs_projector * projector)
    return (tower + projector * (not runs_projector) + kept) / kept


def backbone_of(geometry: InternVL3Geometry, tiles: int) -> Backbone:
    model = geometry.model()
    tokenizer = build_tokenizer(["which tile is the ball in the box next to it now one two three red blue"], 400)
    model.config.image_token_id = tokenizer.context_image_token_id
    size = {"height": geometry.tile_size, "width": geometry.tile_size}
    processor = GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, max_patches=tiles)
    return Backbone(model, tokenizer, processor)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tiles", type=int, nargs="+", default=[1], help="most that a photograph is cut into")
    options.add_argument("--images", type=int, default=8)
    options.set_defaults(repeats=3)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    geometry = InternVL3Geometry(**(SCALED | args.geometry))
    report = Report("features_cache", geometry, args.out)
    for tiles in args.tiles:
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                measure(report, Path(folder), geometry, kind, tiles, args.images, args.repeats)
    for kind in KINDS:
        most = max(row["speed_up"] for row in report.rows if row["epoch"] == kind.name)
        report.goal(f"an epoch of {kind.name}, images encoded over features kept", ">= 3", most, most >= 3)
    report.finish()


def measure(
    report: Report, folder: Path, geometry: InternVL3Geometry, kind: Kind, tiles: int, n_images: int, repeats: int
) -> None:
    examples, backbone = photographs(folder, n_images), backbone_of(geometry, tiles)
    freeze(backbone.model, **kind.freezing)
    if kind.has_lora:
        add_lora(backbone.model, rank=16, alpha=16)
    config = RunConfig(
        mode="cot_train", name="cache", model_id="none", train_path="none.json", output_dir=str(folder),
        freeze=kind.freezing, features="cache", num_workers=0, max_image_tiles=tiles,
    )  # fmt: skip
    reasoner = LatentReasoner(backbone.model, None)
    encoders = {name: encoder_of(config, backbone, "2026-11-25") for name in ("encoded", "kept")}
    training = kind.forwards > 1
    # a learning rate of 0, so that both ways and all epochs have the same loss
    optimizer = torch.optim.AdamW([p for p in reasoner.parameters() if p.requires_grad], lr=0.0)
    collator = Collator(backbone.tokenizer.pad_token_id, None, backbone.family.batch)
    losses: dict[str, float] = {}

    def rows(name: str) -> ReasoningDataset:
        arrange = lambda _, tokens: layout(tokens, 0, ()) if training else (tokens.prompt, tokens.prompt)  # noqa: E731
        return ReasoningDataset(examples, encoders[name], "reasoning", arrange)

    def epoch(name: str) -> None:
        total = 0.0
        for batch in make_loader(rows(name), RankBatches(n_images, geometry.batch, 0, 1), collator, 0):
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask")} | batch["inputs"]
            with torch.set_grad_enabled(training):
                loss = reasoner(**inputs, labels=batch["labels"] if training else None).loss
            if training:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                total += float(loss.detach())
        losses[name] = total

    row = rows("encoded")[0, True]
    started = perf_counter()
    Features(config, backbone, reasoner, encoders["kept"]).keep(examples)
    written = perf_counter() - started
    per_image = sum(path.stat().st_size for path in folder.glob("features/*/*.safetensors")) / n_images
    times = report.in_turn({name: partial(epoch, name) for name in encoders}, repeats)
    n_tiles, labels = len(row.inputs["pixel_values"]), sum(label >= 0 for label in row.labels) * training
    report.add(
        {
            "epoch": kind.name,
            "most_tiles": tiles,
            "encoded_s": times["encoded"].median,
            "kept_s": times["kept"].median,
            "first_epoch_s": written + times["kept"].median,
            "mib_an_image": per_image / 2**20,
            "bound": bound(geometry, kind, n_tiles, len(row.input_ids), labels),
            **times["encoded"].over(times["kept"], "speed_up"),
        }
    )
    print(f"the losses are {'the same' if losses['encoded'] == losses['kept'] else 'NOT the same'}")


if __name__ == "__main__":
    main()
