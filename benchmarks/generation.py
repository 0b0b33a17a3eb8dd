"""Batched Coconut generation from the static cache against one example at a time, everything computed again."""

import torch
from common import EOS, LATENT, Geometry, parser
from measuring import Report
from transformers import GenerationConfig, PreTrainedModel

from multicoco import LatentReasoner


def recompute_generate(model: PreTrainedModel, geometry: Geometry, input_ids: torch.Tensor, new: int) -> torch.Tensor:
    """(1, T) -> (1, new): greedy; a run over the whole sequence for every latent token and every new token."""
    embed, tokens = model.get_input_embeddings(), []
    embeds = embed(input_ids)
    for column in range(geometry.prefix, geometry.prefix + geometry.latents):
        hidden = model.model(inputs_embeds=embeds[:, :column], use_cache=False).last_hidden_state
        embeds = torch.cat([embeds[:, :column], hidden[:, -1:], embeds[:, column + 1 :]], dim=1)
    for _ in range(new):
        logits = model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits
        tokens.append(logits[:, -1].argmax(-1))
        embeds = torch.cat([embeds, embed(tokens[-1])[:, None]], dim=1)
    return torch.stack(tokens, dim=1)


@torch.no_grad()
def main() -> None:
    options = parser(__doc__)
    options.add_argument("--new-tokens", type=int, default=16)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    geometry = Geometry(**{"batch": 16, "suffix": 8, **args.geometry})
    model = geometry.model().eval()
    batch = geometry.inputs()
    prompts = {key: batch[key] for key in ("input_ids", "attention_mask")}
    reasoner = LatentReasoner(geometry.model().eval(), LATENT)
    new = args.new_tokens
    config = GenerationConfig(
        max_new_tokens=new, min_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=EOS
    )
    results = {}

    def batched():
        results["batched"] = reasoner.generate(**prompts, generation_config=config)

    def one_by_one():
        results["one by one"] = recompute_generate(model, geometry, prompts["input_ids"][:1], new)

    report = Report("generation", geometry, args.out)
    times = report.in_turn({"batched": batched, "one by one": one_by_one}, args.repeats)
    examples = {"batched": geometry.batch, "one by one": 1}
    for name, timing in times.items():
        report.add(
            {
                "way": name,
                "examples": examples[name],
                "examples_per_s": examples[name] / timing.median,
                "ms_per_token": 1000 * timing.median / (examples[name] * new),
                **{key: examples[name] * x for key, x in times["one by one"].over(timing, "speed_up").items()},
            }
        )
    same = torch.equal(results["batched"][:1], results["one by one"])
    print(f"the first example's tokens are {'the same' if same else 'NOT the same'} both ways")
    ratio = report.rows[0]["speed_up"]
    report.goal("examples/s, batched over one by one", ">= 10", ratio, ratio >= 10)
    report.finish()


if __name__ == "__main__":
    main()
