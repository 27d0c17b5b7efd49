"""Which method to take for a task, a model and a machine, with reasons that a person can check."""
