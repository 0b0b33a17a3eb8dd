"""AdamW's groups of parameters: one, or one for each part that has a learning rate of its own."""

from typing import Any

from deepspeed import DeepSpeedEngine
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import nn

from multicoco.config.rates import Rates
from multicoco.errors import UserError
from multicoco.latent.reasoner import LatentReasoner

Groups = list[dict[str, Any]]  # as torch's optimizers take them, with the name of the `part`


def parameter_groups(reasoner: LatentReasoner, rates: Rates) -> Groups:
    """All that trains. With a rate for each part, a group of each, the language model's first: to it belongs what no
    other part has, such as the projection of thoughts.

    Raises:
        UserError: a part with a rate does not train, or one that trains has none.
    """
    trained = [parameter for parameter in reasoner.parameters() if parameter.requires_grad]
    if not isinstance(rates, dict):
        return [{"params": trained}]
    family, model = reasoner.family, reasoner.model
    part_of = {id(p): part for part in family.parts for p in family.part(model, part).parameters()}
    if "new_tokens" in rates:
        part_of |= {id(p): "new_tokens" for p in _token_rows(model)}
    groups: dict[str, list[nn.Parameter]] = {"language_model": []}
    for parameter in trained:
        groups.setdefault(part_of.get(id(parameter), "language_model"), []).append(parameter)
    groups = {part: parameters for part, parameters in groups.items() if parameters}
    problems = [
        f"lr.{part} is set but {model.config.model_type} has no {part} that trains: leave it out"
        for part in rates.keys() - groups.keys()
    ]
    problems += [
        f"lr has no {part}, which trains: give it a rate, or freeze it" for part in groups.keys() - rates.keys()
    ]
    if problems:
        raise UserError("\n  ".join(sorted(problems)))
    return [{"params": parameters, "part": part} for part, parameters in groups.items()]


def _token_rows(model: nn.Module) -> list[nn.Parameter]:
    layers = [module for module in model.modules() if isinstance(module, TrainableTokensLayer)]
    return [rows for layer in layers for rows in layer.trainable_tokens_delta.parameters()]


def peak_rate(group: dict[str, Any], rates: Rates) -> float:
    """Of a group of parameters."""
    return rates[group["part"]] if isinstance(rates, dict) else rates


def learning_rates(engine: DeepSpeedEngine, rates: Rates) -> dict[str, float]:
    """Of the next step, for the log: the language model's or the first part's under `train/lr`, and each part's."""
    scheduler = engine.lr_scheduler
    last = scheduler.get_last_lr()
    parts = [group["part"] for group in scheduler.optimizer.param_groups] if isinstance(rates, dict) else []
    return {"train/lr": last[0], **{f"train/lr/{part}": rate for part, rate in zip(parts, last, strict=False)}}
