"""What `luthier check` looks at."""
