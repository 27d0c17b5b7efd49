"""What to learn: one file per task."""
