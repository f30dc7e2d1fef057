"""See inside a CLIP: dense maps, attention, explanations, and how robust a classifier is."""

from clipkit.inspect import plots
from clipkit.inspect.class_maps import ClassMapper, class_map
from clipkit.inspect.corruptions import Blur, Corruption, GaussianNoise, Jpeg, Masking, Sample
from clipkit.inspect.dense import dense_features
from clipkit.inspect.refine import refine_scores
from clipkit.inspect.robustness import Robustness, robustness
from clipkit.inspect.robustness_figures import RobustnessRow
from clipkit.inspect.typographic import TypographicAttack, write

__all__ = [
    "Blur",
    "ClassMapper",
    "Corruption",
    "GaussianNoise",
    "Jpeg",
    "Masking",
    "Robustness",
    "RobustnessRow",
    "Sample",
    "TypographicAttack",
    "class_map",
    "dense_features",
    "plots",
    "refine_scores",
    "robustness",
    "write",
]
