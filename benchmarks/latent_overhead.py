"""What latent tokens cost: a step with K of them over a step on the same tokens, all known, in one pass.

On the CPU, in fp32; on a GPU: gpu.py.
"""

import torch
from common import LATENT, WORD, Geometry, parser
from measuring import Report

from multicoco import LatentReasoner


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    report = Report("latent_overhead", Geometry(**args.geometry), args.out)
    for latents in (0, 1, 2, 4, 6, 12):
        geometry = Geometry(**{**args.geometry, "latents": latents})
        reasoner = LatentReasoner(geometry.model(), LATENT)

        def step(inputs, reasoner=reasoner):
            reasoner.zero_grad()
            reasoner(**inputs).loss.backward()

        with_latents, without = (geometry.inputs(n) for n in (latents, 0))
        without["input_ids"][without["input_ids"] == LATENT] = WORD
        sides = {
            "with": lambda step=step, inputs=with_latents: step(inputs),
            "without": lambda step=step, inputs=without: step(inputs),
        }
        times = report.in_turn(sides, args.repeats)
        with_, without_ = times["with"], times["without"]
        row = {"K": latents, "step_s": with_.median, "one_pass_s": without_.median}
        report.add(row | with_.over(without_, "ratio"))
    [at_6] = [row["ratio"] for row in report.rows if row["K"] == 6]
    report.goal("step with K = 6 over one pass", "<= 1.25", at_6, at_6 <= 1.25)
    report.finish()


if __name__ == "__main__":
    main()
