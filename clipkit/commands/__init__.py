"""The commands of the `clipkit` program."""

import typing

import clipkit.late as _late

# What brings torch along comes when a command first needs it: a search may need no model at all.
if typing.TYPE_CHECKING:
    from clipkit.commands.model_choice import load_model, load_text_tower

__all__ = ["load_model", "load_text_tower"]

# Where the names are.
_HOMES = {"clipkit.commands.model_choice": ("load_model", "load_text_tower")}

if not typing.TYPE_CHECKING:
    __getattr__, __dir__ = _late.late_names("clipkit.commands", _HOMES)
