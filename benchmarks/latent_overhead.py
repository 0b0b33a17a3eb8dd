"""What latent tokens cost: a step with K of them over a step on the same tokens, all known, in one pass.

On a GPU in bf16 where there is one, else on the CPU in fp32.
"""

import torch
from common import LATENT, WORD, Geometry, InternVL3Geometry, parser
from measuring import Report

from multicoco import LatentReasoner


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--internvl3", action="store_true", help="InternVL3-1B, images included; meant for an H200")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    geometry_type, most = (InternVL3Geometry, 1.15) if args.internvl3 else (Geometry, 1.25)
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    name = "latent_overhead_internvl3" if args.internvl3 else "latent_overhead"
    report = Report(name, geometry_type(**args.geometry), args.out)
    for latents in (0, 1, 2, 4, 6, 12):
        geometry = geometry_type(**{**args.geometry, "latents": latents})
        reasoner = LatentReasoner(geometry.model().to(device, dtype), LATENT)

        def step(inputs, reasoner=reasoner):
            reasoner.zero_grad()
            reasoner(**inputs).loss.backward()

        with_latents, without = ({k: x.to(device) for k, x in geometry.inputs(n).items()} for n in (latents, 0))
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
    report.goal("step with K = 6 over one pass", f"<= {most}", at_6, at_6 <= most)
    report.finish()


if __name__ == "__main__":
    main()
