"""What an epoch costs with the features of images kept, against encoding every image again; vision tower and projector
frozen.

InternVL3-1B's sizes with one layer of 24 in each part, and as much less vocabulary, so that the parts cost in the
proportion they have: photographs read from files, cut into tiles, encoded or looked up, one step of AdamW a batch. The
first epoch, in which features are computed and written, is told apart. Asking is the prompts alone.
"""

import tempfile
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


def backbone_of(geometry: InternVL3Geometry, tiles: int) -> Backbone:
    model = geometry.model()
    tokenizer = build_tokenizer(["which tile is the ball in the box next to it now one two three red blue"], 400)
    model.config.image_token_id = tokenizer.context_image_token_id
    size = {"height": geometry.tile_size, "width": geometry.tile_size}
    processor = GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, max_patches=tiles)
    freeze(model, vision_tower=True, projector=True)
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
        with tempfile.TemporaryDirectory() as folder:
            measure(report, Path(folder), geometry, tiles, args.images, args.repeats)
    for kind in dict.fromkeys(row["epoch"] for row in report.rows):
        most = max(row["speed_up"] for row in report.rows if row["epoch"] == kind)
        report.goal(f"an epoch of {kind}, images encoded over features kept", ">= 3", most, most >= 3)
    report.finish()


def measure(report: Report, folder: Path, geometry: InternVL3Geometry, tiles: int, n_images: int, repeats: int) -> None:
    examples, backbone = photographs(folder, n_images), backbone_of(geometry, tiles)
    frozen = {"vision_tower": True, "projector": True}
    config = RunConfig(
        mode="cot_train", name="cache", model_id="none", train_path="none.json", output_dir=str(folder), freeze=frozen,
        features="cache", num_workers=0, max_image_tiles=tiles,
    )  # fmt: skip
    reasoner = LatentReasoner(backbone.model, None)
    encoders = {name: encoder_of(config, backbone, "2026-11-25") for name in ("encoded", "kept")}
    losses = {}

    def epoch(name: str, kind: str, optimizer: torch.optim.Optimizer | None) -> None:
        """With a learning rate of 0, so that both ways and all epochs have the same loss."""
        training = optimizer is not None
        arrange = lambda _, tokens: layout(tokens, 0, ()) if training else (tokens.prompt, tokens.prompt)  # noqa: E731
        dataset = ReasoningDataset(examples, encoders[name], "reasoning", arrange)
        collator = Collator(backbone.tokenizer.pad_token_id, None, backbone.family.batch)
        total = 0.0
        for batch in make_loader(dataset, RankBatches(n_images, geometry.batch, 0, 1), collator, 0):
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask")} | batch["inputs"]
            with torch.set_grad_enabled(training):
                loss = reasoner(**inputs, labels=batch["labels"] if training else None).loss
            if optimizer is not None:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                total += float(loss.detach())
        losses[name, kind] = total

    started = perf_counter()
    Features(config, backbone, reasoner, encoders["kept"]).keep(examples)
    written = perf_counter() - started
    per_image = sum(path.stat().st_size for path in folder.glob("features/*/*.safetensors")) / n_images
    for kind in ("training", "asking", "training, LoRA"):
        if kind == "training, LoRA":
            add_lora(backbone.model, rank=16, alpha=16)
        trained = [parameter for parameter in reasoner.parameters() if parameter.requires_grad]
        steps = None if kind == "asking" else torch.optim.AdamW(trained, lr=0.0)
        ways = {name: lambda name=name, kind=kind, steps=steps: epoch(name, kind, steps) for name in encoders}
        times = report.in_turn(ways, repeats)
        report.add(
            {
                "epoch": kind,
                "most_tiles": tiles,
                "encoded_s": times["encoded"].median,
                "kept_s": times["kept"].median,
                "first_epoch_s": written + times["kept"].median,
                "mib_an_image": per_image / 2**20,
                **times["encoded"].over(times["kept"], "speed_up"),
            }
        )
    same = all(losses["encoded", kind] == losses["kept", kind] for _, kind in losses)
    print(f"the losses are {'the same' if same else 'NOT the same'}")


if __name__ == "__main__":
    main()
