"""The recipe: composes the settings of the layers below it, reads YAML and overrides."""
