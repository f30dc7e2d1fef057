"""Draw predictions, maps, curves, confusions, embeddings and robustness with matplotlib.

Every function returns a `matplotlib.figure.Figure`, which a notebook shows and `savefig` writes;
none shows or writes it by itself. They need `pip install 'clipkit-torch[plots]'`.

Example:
    from clipkit.inspect import plots

    plots.prediction_panels(files, classifier.predict(files)).savefig("predictions.png")
"""

from clipkit.inspect.plot_confusions import confusion_pairs
from clipkit.inspect.plot_embedding import embedding_map, project
from clipkit.inspect.plot_few_shot import few_shot_curves
from clipkit.inspect.plot_heat_map import heat_map
from clipkit.inspect.plot_predictions import prediction_panels
from clipkit.inspect.plot_robustness import robustness_figure
from clipkit.inspect.plot_segmentation import segmentation

__all__ = [
    "confusion_pairs",
    "embedding_map",
    "few_shot_curves",
    "heat_map",
    "prediction_panels",
    "project",
    "robustness_figure",
    "segmentation",
]
