"""The loop, its optimizer and schedule, checkpoints and the log."""
