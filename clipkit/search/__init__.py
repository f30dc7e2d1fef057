"""Find images by texts, by other images, and by sums of both: `Index` and its stores."""

import typing

import clipkit.late as _late

# A type checker reads these. At run time each comes when it is first asked for.
if typing.TYPE_CHECKING:
    from clipkit.search.collection import Collection
    from clipkit.search.filling import Changes
    from clipkit.search.index import Index
    from clipkit.search.memory import MemoryStore
    from clipkit.search.model_encoder import ModelEncoder, TextEncoder
    from clipkit.search.postgres import PostgresStore
    from clipkit.search.query import Term
    from clipkit.search.results import Duplicates, Result, Results
    from clipkit.search.sheet import write_sheet
    from clipkit.search.store import Hit, Store
    from clipkit.search.usearch_store import UsearchStore

__all__ = [
    "Changes",
    "Collection",
    "Duplicates",
    "Hit",
    "Index",
    "MemoryStore",
    "ModelEncoder",
    "PostgresStore",
    "Result",
    "Results",
    "Store",
    "Term",
    "TextEncoder",
    "UsearchStore",
    "write_sheet",
]

# Where the names are.
_HOMES = {
    "clipkit.search.collection": ("Collection",),
    "clipkit.search.filling": ("Changes",),
    "clipkit.search.index": ("Index",),
    "clipkit.search.memory": ("MemoryStore",),
    "clipkit.search.model_encoder": ("ModelEncoder", "TextEncoder"),
    "clipkit.search.postgres": ("PostgresStore",),
    "clipkit.search.query": ("Term",),
    "clipkit.search.results": ("Duplicates", "Result", "Results"),
    "clipkit.search.sheet": ("write_sheet",),
    "clipkit.search.store": ("Hit", "Store"),
    "clipkit.search.usearch_store": ("UsearchStore",),
}

if not typing.TYPE_CHECKING:
    __getattr__, __dir__ = _late.late_names("clipkit.search", _HOMES)
