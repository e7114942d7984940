"""Recipes: values only, one YAML file a run."""
