"""See inside a CLIP: dense maps, attention, explanations, and how robust a classifier is."""

from clipkit.inspect import faithfulness, plots
from clipkit.inspect.attention import attention_maps, text_attention_maps
from clipkit.inspect.class_maps import ClassMapper, class_map
from clipkit.inspect.corruptions import Blur, Corruption, GaussianNoise, Jpeg, Masking, Sample
from clipkit.inspect.dense import dense_features
from clipkit.inspect.explain import explain
from clipkit.inspect.explanation import Explanation
from clipkit.inspect.overlay import draw_overlay
from clipkit.inspect.refine import refine_scores
from clipkit.inspect.robustness import Robustness, robustness
from clipkit.inspect.robustness_figures import RobustnessRow
from clipkit.inspect.rollout import rollout
from clipkit.inspect.typographic import TypographicAttack, write
from clipkit.inspect.views import attention_distance, patch_filters, position_similarity

__all__ = [
    "Blur",
    "ClassMapper",
    "Corruption",
    "Explanation",
    "GaussianNoise",
    "Jpeg",
    "Masking",
    "Robustness",
    "RobustnessRow",
    "Sample",
    "TypographicAttack",
    "attention_distance",
    "attention_maps",
    "class_map",
    "dense_features",
    "draw_overlay",
    "explain",
    "faithfulness",
    "patch_filters",
    "plots",
    "position_similarity",
    "refine_scores",
    "robustness",
    "rollout",
    "text_attention_maps",
    "write",
]
