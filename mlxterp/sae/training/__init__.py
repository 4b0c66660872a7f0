"""Training SAEs: activations, objective, steps, checkpoints, the learning-rate search."""
