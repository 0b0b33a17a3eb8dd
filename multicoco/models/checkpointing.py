"""Activation checkpointing of a model."""

from transformers import PreTrainedModel


def checkpoint_activations(model: PreTrainedModel) -> None:
    """In training mode, activations are computed again in backward instead of kept, layer by layer. Backward still ends
    where nothing before is trained: a frozen vision tower runs once."""
    # reentrant checkpointing would fire ZeRO's gradient hooks once per latent pass
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()  # which only reentrant checkpointing needs
