"""See inside a CLIP: dense maps, attention, explanations, and how robust a classifier is."""

from clipkit.inspect.dense import dense_features

__all__ = ["dense_features"]
