"""The stages of a run, in order: prepare, train, evaluate, export; and check, plan and choose before it."""
