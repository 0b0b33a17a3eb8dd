"""The padding of batches in random order and grouped by length, and what it costs.

Lengths like those of A-OKVQA's 17,056 training records: a question with four choices, a photograph of one tile, or of 3
to 13 as InternVL cuts them, three rationales and the answer; 256 tokens a tile. That is arithmetic, the same on every
machine; so is `packing`, how many times as fast rows without any padding could be as grouped ones. Then both orders
timed: steps of a random Qwen2 over batches of a small such set, without images (not with `--examples 0`).
"""

import numpy as np
import torch
from common import EOS, WORD, Geometry, parser
from measuring import Report

from multicoco import LatentReasoner
from multicoco.data.order import Order, Sizes, grouped, padding_share, shuffled

RECORDS = 17_056
GLOBAL_BATCH = 128
TILES = {"no image": (0,), "1 tile": (1,), "3 to 13 tiles": (13,) * 9 + (7,) * 5 + (5,) * 3 + (10,) * 2 + (3,)}


def lengths(n: int, tiles: tuple[int, ...]) -> Sizes:
    """(n, 2): prompts, and reasoning with the answer."""
    random = np.random.default_rng(0)
    prompts = 60 + random.gamma(6, 5, n) + 256 * random.choice(tiles, n)
    written = 8 + sum(random.gamma(5, 3, n) for _ in range(3))
    return np.stack([prompts, written], axis=1).astype(np.int64)


def batches(sizes: Sizes, order: Order, batch_size: int, vocabulary: int) -> list[dict[str, torch.Tensor]]:
    """Rows from the left edge, as those without thoughts."""
    made = []
    for start in range(0, len(order), batch_size):
        rows = sizes[order[start : start + batch_size]]
        ids = torch.full((len(rows), int(rows.sum(1).max())), EOS)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, (prompt, written) in enumerate(rows.tolist()):
            words = torch.randint(WORD, vocabulary, (prompt + written,), generator=torch.Generator().manual_seed(i))
            ids[i, : prompt + written], mask[i, : prompt + written] = words, 1
            labels[i, prompt : prompt + written] = words[prompt:]
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--examples", type=int, default=256, help="of the set whose epochs are timed; 0: none are")
    options.set_defaults(repeats=3)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    geometry = Geometry(**{"layers": 1, "hidden": 256, "batch": 8, "vocabulary": 8000, **args.geometry})
    report = Report("length_groups", geometry, args.out)
    for kind, tiles in TILES.items():
        sizes = lengths(RECORDS, tiles)
        orders = {"shuffled": shuffled(RECORDS, "0/0"), "grouped": grouped(sizes, "0/0", GLOBAL_BATCH)}
        for batch_size in (4, 16, 32):
            shares = {name: padding_share(sizes, order, batch_size) for name, order in orders.items()}
            report.add({"example": kind, "batch": batch_size, **shares, "packing": 1 / (1 - shares["grouped"])})
    most = max(row["grouped"] for row in report.rows if row["example"] != "no image")
    report.goal("padding of batches of questions about images, grouped", "<= 0.05", most, most <= 0.05)
    if args.examples:
        time_both(report, geometry, args.examples, args.repeats)
    report.finish()


def time_both(report: Report, geometry: Geometry, n_examples: int, repeats: int) -> None:
    sizes = lengths(n_examples, TILES["no image"])
    whole = np.stack([sizes.sum(1), 0 * sizes[:, 1]], axis=1)  # without thoughts, nothing is lined up
    reasoner = LatentReasoner(geometry.model(), None)
    ways = {}
    for name, order in (
        ("shuffled", shuffled(n_examples, "0/0")),
        ("grouped", grouped(whole, "0/0", geometry.batch)),
    ):
        made = batches(sizes, order, geometry.batch, geometry.vocabulary)

        def epoch(made: list[dict[str, torch.Tensor]] = made) -> None:
            for batch in made:
                reasoner.zero_grad()
                reasoner(**batch).loss.backward()

        ways[name] = epoch
    times = report.in_turn(ways, repeats)
    padding = padding_share(whole, shuffled(n_examples, "0/0"), geometry.batch)
    report.add(
        {
            "epoch of": n_examples,
            "shuffled_s": times["shuffled"].median,
            "grouped_s": times["grouped"].median,
            "shuffled_padding": padding,
            **times["shuffled"].over(times["grouped"], "speed_up"),
        }
    )


if __name__ == "__main__":
    main()
