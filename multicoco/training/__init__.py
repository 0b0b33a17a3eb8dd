"""Training: stages, epochs and steps on DeepSpeed, an evaluation and a checkpoint after each epoch."""
