"""A method's parts around a model: what trains and what answers with thoughts is made here, and nowhere else."""

from transformers import PreTrainedModel

from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.schedule import OnePass
from multicoco.latent.thoughts import Projected
from multicoco.methods.method import Method


def thinking_model(
    method: Method,
    model: PreTrainedModel,
    latent_token_id: int,
    kernel: str = "auto",
    trains: bool = True,
    cuda_graphs: bool = True,
) -> LatentReasoner:
    """Args:
        kernel, cuda_graphs: as of `LatentReasoner`.
        trains: with the method's objective.

    Raises:
        ValueError: as `LatentReasoner`, and as the method's parts.
    """
    objective = method.objective(model) if trains else None
    if isinstance(method.pass_schedule, OnePass):
        fixed = method.fixed_thoughts(model)
        return LatentReasoner(model, None, kernel, fixed_thoughts=fixed, objective=objective)
    thoughts = method.thought_source()
    if (projection := method.projection(model)) is not None:
        thoughts = Projected(thoughts, projection)
    return LatentReasoner(
        model,
        latent_token_id,
        kernel,
        thoughts,
        gradient_passes=method.gradient_passes,
        pass_schedule=method.pass_schedule,
        objective=objective,
        cuda_graphs=cuda_graphs,
    )
