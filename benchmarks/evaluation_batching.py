"""Greedy answers of different lengths: rows leave when they have ended and the next prompts join those that are left,
against batches that stay together until the longest has ended.

A random Qwen2, of which a share of all words end an answer, so that lengths are as if drawn: most are short, some go on
to the longest allowed. Also what choices cost: four of them after one prompt, against four prompts.
"""

import torch
from common import EOS, LATENT, WORD, Geometry, parser
from measuring import Report
from transformers import GenerationConfig

from multicoco import LatentReasoner
from multicoco.latent.generate import generate_after, log_likelihoods
from multicoco.latent.greedy import GreedyAnswers

CHOICES = 4


@torch.no_grad()
def main() -> None:
    options = parser(__doc__)
    options.add_argument("--new-tokens", type=int, default=64, help="the longest answer")
    options.add_argument("--mean", type=int, default=16, help="tokens of an answer, were there no longest one")
    options.add_argument("--batches", type=int, default=4)
    options.set_defaults(repeats=3)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    geometry = Geometry(**{"layers": 2, "batch": 16, "prefix": 64, "vocabulary": 8000, **args.geometry})
    model = geometry.model().eval()
    reasoner = LatentReasoner(model, LATENT)
    ids = torch.randint(WORD, geometry.vocabulary, (args.batches, geometry.batch, geometry.prefix))
    mask = torch.ones_like(ids[0])
    ends = list(range(WORD, geometry.vocabulary, args.mean))
    config = GenerationConfig(max_new_tokens=args.new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=EOS)
    report = Report("evaluation_batching", geometry, args.out)
    said: dict[str, list[list[int]]] = {}

    def stay() -> None:
        rows = [
            row
            for of_batch in ids
            for row in generate_after(model, reasoner.run_passes(of_batch, mask), config).tolist()
        ]
        ended = [next((i for i, token in enumerate(row) if token in ends), len(row) - 1) + 1 for row in rows]
        said["stay"] = [row[:length] for row, length in zip(rows, ended, strict=True)]

    def leave() -> None:
        answers, found = GreedyAnswers(model, args.new_tokens, ends), {}
        for number, of_batch in enumerate(ids):
            names = range(number * geometry.batch, (number + 1) * geometry.batch)
            answers.join(reasoner.run_passes(of_batch, mask), range(geometry.batch), names)
            while len(answers) > geometry.batch // 2:
                found |= answers.step()
        while answers:
            found |= answers.step()
        said["leave"] = [found[name] for name in sorted(found)]

    times = report.in_turn({"stay": stay, "leave": leave}, args.repeats)
    print(f"the tokens are {'the same' if said['stay'] == said['leave'] else 'NOT the same'} both ways")
    lengths = [len(row) for row in said["leave"]]
    report.add(
        {
            "way": "answers: together over as they end",
            "once_s": times["leave"].median,
            "again_s": times["stay"].median,
            "mean_tokens": sum(lengths) / len(lengths),
            **times["stay"].over(times["leave"], "speed_up"),
        }
    )
    words = torch.randint(WORD, geometry.vocabulary, (geometry.batch, CHOICES, 3))  # no two begin alike, or hardly any

    def again() -> None:
        for place in range(CHOICES):
            text = words[:, place]
            log_likelihoods(model, reasoner.run_passes(ids[0], mask), text, text)

    def once() -> None:
        log_likelihoods(model, reasoner.run_passes(ids[0], mask), words, words)

    times = report.in_turn({"again": again, "once": once}, args.repeats)
    report.add(
        {
            "way": f"{CHOICES} choices: prompts again over once",
            "once_s": times["once"].median,
            "again_s": times["again"].median,
            "mean_tokens": 3.0,
            **times["again"].over(times["once"], "speed_up"),
        }
    )
    for row, least in zip(report.rows, (1.3, 3), strict=True):
        report.goal(row["way"], f">= {least}", row["speed_up"], row["speed_up"] >= least)
    report.finish()


if __name__ == "__main__":
    main()
