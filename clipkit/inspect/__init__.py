"""See inside a CLIP: dense maps, attention, explanations, and how robust a classifier is."""

from clipkit.inspect.class_maps import ClassMapper, class_map
from clipkit.inspect.dense import dense_features
from clipkit.inspect.refine import refine_scores

__all__ = ["ClassMapper", "class_map", "dense_features", "refine_scores"]
