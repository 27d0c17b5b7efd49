"""Forms to deploy a tuned model in: one file each."""
