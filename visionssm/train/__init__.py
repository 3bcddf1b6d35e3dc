"""Training: recipes, one loop from a laptop to several nodes, checkpoints that lose nothing."""

from .recipe import Recipe, describe_fields, load_recipe

__all__ = ['Recipe', 'describe_fields', 'load_recipe']
