"""Training: loop, optimizer, checkpoints, and the tasks and validations of each kind of method."""
