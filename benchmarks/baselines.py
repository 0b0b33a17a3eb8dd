"""A whole training step against two plain ways to write it: no cache at all, and a DynamicCache that is sliced.

How much the second loses depends on the vocabulary, because it projects every position, not the labelled ones alone.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
import torch.nn.functional as F
from common import LATENT, Geometry, in_new_process, parser, peak_resident
from measuring import Report
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from multicoco import LatentReasoner
from multicoco.models.checkpointing import checkpoint_activations

PLAIN = "dynamic cache"  # the way that the others are compared with


def full_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


def recompute_loss(model: PreTrainedModel, geometry: Geometry, input_ids, attention_mask, labels) -> Tensor:
    """Everything before a latent token again, for each of them; logits of the last pass only."""
    embeds = model.get_input_embeddings()(input_ids)
    for column in range(geometry.prefix, geometry.prefix + geometry.latents):
        hidden = model.model(inputs_embeds=embeds[:, :column], use_cache=False).last_hidden_state
        embeds = torch.cat([embeds[:, :column], hidden[:, -1:], embeds[:, column + 1 :]], dim=1)
    return full_cross_entropy(model(inputs_embeds=embeds, use_cache=False).logits, labels)


def dynamic_cache_loss(model: PreTrainedModel, geometry: Geometry, input_ids, attention_mask, labels) -> Tensor:
    """Pass by pass with transformers' cache, cut to what came before, and the logits of every pass."""
    embeds = model.get_input_embeddings()(input_ids)
    starts = [0, *range(geometry.prefix, geometry.prefix + geometry.latents)]
    layers, hidden, logits = [], None, []
    for start, end in zip(starts, [*starts[1:], input_ids.shape[1]], strict=True):
        part = embeds[:, start:end]
        if start:
            part = torch.cat([hidden[:, -1:], part[:, 1:]], dim=1)
        past = DynamicCache([(keys[:, :, :start], values[:, :, :start]) for keys, values in layers])
        output = model(
            inputs_embeds=part,
            attention_mask=attention_mask[:, :end],
            past_key_values=past,
            use_cache=True,
            output_hidden_states=True,
        )
        layers = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
        hidden = output.hidden_states[-1]
        logits.append(output.logits)
    return full_cross_entropy(torch.cat(logits, dim=1), labels)


def sides(geometry: Geometry) -> dict:
    """How to build each way: its model, always of the same weights, and its loss."""

    def ours(kernel: str = "auto", checkpointing: bool = False, onednn: bool = True):
        model = geometry.model()
        if checkpointing:
            checkpoint_activations(model)
        reasoner = LatentReasoner(model.train(), LATENT, kernel)

        def loss_of(inputs: dict) -> Tensor:
            torch.backends.mkldnn.enabled = onednn  # for the backward that follows, too
            return reasoner(**inputs).loss

        return model, loss_of

    def plain(loss):
        model = geometry.model().train()
        return model, lambda inputs: loss(model, geometry, **inputs)

    return {
        PLAIN: lambda: plain(dynamic_cache_loss),
        "multicoco": ours,
        "multicoco, checkpointing": lambda: ours(checkpointing=True),
        "multicoco, reference kernel": lambda: ours(kernel="reference"),
        "multicoco, BLAS instead of oneDNN": lambda: ours(onednn=False),
        "no cache": lambda: plain(recompute_loss),
    }


def make_step(model: PreTrainedModel, loss_of: Callable[[dict], Tensor], inputs: dict):
    """A step to be timed, and the list of the losses it will have had."""
    losses = []

    def step():
        loss = loss_of(inputs)
        loss.backward()
        losses.append(loss.item())
        model.zero_grad()  # no side's gradients take the others' memory
        torch.backends.mkldnn.enabled = True

    return step, losses


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--memory-of", help="print the peak memory of one step of this side alone")
    options.add_argument(
        "--vocabularies", type=int, nargs="+", default=[32_000, 151_674], help="the second is InternVL3's"
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    geometry = Geometry(**args.geometry)
    if args.memory_of:
        model, loss_of = sides(geometry)[args.memory_of]()
        step, _ = make_step(model, loss_of, geometry.inputs())
        step()
        before, peak = peak_resident(step)
        print(json.dumps({"peak": peak - before}))
        return
    report = Report("baselines", geometry, args.out)
    for vocabulary in args.vocabularies:
        compare(report, replace(geometry, vocabulary=vocabulary), args.repeats)
    report.finish()


def compare(report: Report, geometry: Geometry, repeats: int) -> None:
    """A row for each way, the one that all are compared with first."""
    built = {name: build() for name, build in sides(geometry).items()}
    weights = built["multicoco"][0].state_dict()
    for model, _ in built.values():
        model.load_state_dict(weights, assign=True)  # in memory once
    steps = {name: make_step(model, loss_of, geometry.inputs()) for name, (model, loss_of) in built.items()}
    times = report.in_turn({name: step for name, (step, _) in steps.items()}, repeats)
    rows: dict[str, dict] = {}
    for name in steps:
        alone = in_new_process(__file__, "--geometry", json.dumps(asdict(geometry)), "--memory-of", name)
        row = {
            "words": geometry.vocabulary,
            "way": name,
            "loss": f"{steps[name][1][0]:.6f}",
            "step_s": times[name].median,
            **times[PLAIN].over(times[name], "speed_up"),
            "peak_mib": alone["peak"] / 2**20,
        }
        rows[name] = row | {"memory_ratio": row["peak_mib"] / rows.get(PLAIN, row)["peak_mib"]}
        report.add(rows[name])
    words = f"{geometry.vocabulary} words: "
    fast, small = rows["multicoco"]["speed_up"], rows["multicoco, checkpointing"]["memory_ratio"]
    report.goal(words + "speed against the dynamic cache", ">= 1.9", fast, fast >= 1.9)
    report.goal(words + "peak memory with checkpointing, of the dynamic cache's", "<= 0.4", small, small <= 0.4)


if __name__ == "__main__":
    main()
