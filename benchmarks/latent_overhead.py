"""What latent tokens cost: a step with K of them over a step on the same tokens, all known, in one pass."""

import torch
from common import LATENT, Geometry, goal, in_turn, parser, report

from multicoco import LatentReasoner


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for latents in (0, 1, 2, 4, 6, 12):
        geometry = Geometry(**{**args.geometry, "latents": latents})
        reasoner = LatentReasoner(geometry.model(), LATENT)

        def step(inputs, reasoner=reasoner):
            reasoner.zero_grad()
            reasoner(**inputs).loss.backward()

        with_latents, without = geometry.inputs(), geometry.inputs(latents=0)
        without["input_ids"][without["input_ids"] == LATENT] = LATENT + 1
        sides = {
            "with": lambda step=step, inputs=with_latents: step(inputs),
            "without": lambda step=step, inputs=without: step(inputs),
        }
        seconds = in_turn(sides, args.repeats)
        ratio = seconds["with"] / seconds["without"]
        rows.append({"K": latents, "step_s": seconds["with"], "one_pass_s": seconds["without"], "ratio": ratio})
    [at_6] = [row["ratio"] for row in rows if row["K"] == 6]
    goals = [goal("step with K = 6 over one pass", "<= 1.25", at_6, at_6 <= 1.25)]
    report("latent_overhead", rows, goals, Geometry(**args.geometry), args.out)


if __name__ == "__main__":
    main()
