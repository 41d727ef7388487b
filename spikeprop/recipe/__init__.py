"""Recipes: YAML to checked components. The only room that knows YAML (``text``) and pydantic (``checking``).

A recipe may extend another one (``extending``). It names components as ``{use: LIF, leak: 0.99}`` or just ``LIF``. A bare name
is looked up in the slot's home module, a dotted one is imported; then it must be a subclass of the slot's base, and its keys
must be in its signature with values of the annotated types. Every mistake is found here, before any data loads, and named by
its path (``finetune.lr``) with the nearest name. Within ``imports.record_foreign_names`` names from outside are recorded
instead of imported.
"""

from spikeprop.recipe.checking import check, check_component, check_component_text, nested
from spikeprop.recipe.component import Component
from spikeprop.recipe.names import components, home, purposes, slots, unseen
from spikeprop.recipe.problems import Problems
from spikeprop.recipe.recipe import Recipe, load_recipe
from spikeprop.recipe.text import dump, find_recipe, recipe_folder

__all__ = [
    "Component",
    "Problems",
    "Recipe",
    "check",
    "check_component",
    "check_component_text",
    "components",
    "dump",
    "find_recipe",
    "home",
    "load_recipe",
    "nested",
    "purposes",
    "recipe_folder",
    "slots",
    "unseen",
]
