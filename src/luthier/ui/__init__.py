"""The page of `luthier ui`: the way from a task to a deployed model in a browser. Nothing here imports torch."""
