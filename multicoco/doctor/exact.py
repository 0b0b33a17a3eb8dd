"""`multicoco doctor --exact`: whether the latent passes compute what the model of a run computes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from multicoco.config import load_config
from multicoco.data.example import Example
from multicoco.engine.assembly import SHORT_AND_LONG, assemble, prompt_date, short_and_long, weights_of
from multicoco.engine.records import at_hand, load_records, load_training_records
from multicoco.errors import UserError
from multicoco.evaluation.run import as_trained
from multicoco.latent.exactness import measure_exactness
from multicoco.registry import load_all


def check_exactness(config_path: Path, overrides: Sequence[str]) -> Iterator[str]:
    """Lines that say what was compared and what came out, of the weights that the run would start from or evaluate.

    On the CPU, in the memory that `measure_exactness` says.

    Raises:
        UserError: the two losses or their gradients disagree; config, data or model cannot be read, or the passes
            cannot run the model.
    """
    config = load_config(config_path, overrides)
    weights = weights_of(config)
    config = as_trained(config, weights)[0] if config.mode == "eval_only" else config
    config = config.model_copy(update={"self_check": False})  # of which this is the thorough form
    examples: Sequence[Example]
    if config.streaming and config.train_path:
        examples = at_hand(config, load_training_records(config))
    else:
        examples = load_records(config, config.train_path or config.val_path, SHORT_AND_LONG)
    assembly = assemble(config, weights, prompt_date(config, weights.state), examples, torch.device("cpu"))
    model, family = assembly.backbone.model, assembly.backbone.family
    name = next(name for name, kind in load_all("families").items() if kind is type(family))
    proven = "which tests hold against transformers" if family.is_proven else "which is tried, and checked in every run"
    yield f"{weights.source}: a {model.config.model_type} model, of the family {name}, {proven}"
    example = short_and_long(examples, assembly.encoder, config.max_length)[-1]
    found = measure_exactness(model, config.kernel, example, trains=config.mode != "eval_only")
    longest = f"of the first {len(examples)} examples the longest"
    tolerance = f"{found.tolerance.of_spread:.0e} of the spread of the logits: {found.tolerance.reason}"
    lines = {
        "example": f"{found.tokens} tokens, {found.thoughts} of them thoughts; {longest}",
        "loss, through the passes": f"{found.passes:.7f}",
        "loss, by recomputing": f"{found.recomputed:.7f}",
        "difference": f"{found.difference:.1e}",
        "tolerance": tolerance,
    }
    if gradients := found.gradients:
        some = "all" if gradients.compared == gradients.trained else f"the {gradients.compared} smallest of"
        lines |= {
            "gradients": f"of {some} {gradients.trained} trained parameters",
            "furthest apart": f"{gradients.difference:.1e} of its largest entry, {gradients.worst}",
            "tolerance of gradients": f"{gradients.tolerance:.0e}: they are sums over the tokens",
        }
    elif found.agrees:
        lines["gradients"] = "none, nothing is trained"
    for what, value in lines.items():
        yield f"{what:26}{value}"
    if not found.agrees:
        raise UserError(found.refusal)
    yield "they agree"
