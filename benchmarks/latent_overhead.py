"""What latent tokens cost: a step with K of them over a step on the same tokens, all known, in one pass.

On a GPU in bf16 where there is one, else on the CPU in fp32.
"""

import torch
from common import LATENT, WORD, Geometry, InternVL3Geometry, goal, in_turn, parser, report

from multicoco import LatentReasoner


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--internvl3", action="store_true", help="InternVL3-1B, images included; meant for an H200")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    geometry_type, most = (InternVL3Geometry, 1.15) if args.internvl3 else (Geometry, 1.25)
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    rows = []
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
        seconds = in_turn(sides, args.repeats)
        ratio = seconds["with"] / seconds["without"]
        rows.append({"K": latents, "step_s": seconds["with"], "one_pass_s": seconds["without"], "ratio": ratio})
    [at_6] = [row["ratio"] for row in rows if row["K"] == 6]
    goals = [goal("step with K = 6 over one pass", f"<= {most}", at_6, at_6 <= most)]
    name = "latent_overhead_internvl3" if args.internvl3 else "latent_overhead"
    report(name, rows, goals, geometry_type(**args.geometry), args.out)


if __name__ == "__main__":
    main()
