"""scikit-learn's interface to a CLIP: a transformer from images to features."""

import importlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipkit.classify.estimator_base import Estimator
from clipkit.classify.estimator_inputs import read_images
from clipkit.classify.inputs import check_path
from clipkit.clip import CLIP
from clipkit.data.pictures import Images
from clipkit.encode.embed import embed_images
from clipkit.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self


def as_model(model: CLIP | str | os.PathLike[str]) -> CLIP:
    """Return a CLIP as it is, or load one by its name."""
    return model if isinstance(model, CLIP) else CLIP.from_pretrained(model)


class CLIPEncoder(Estimator):
    """Turn images into features, as a transformer of scikit-learn.

    Example:
        model = clipkit.CLIP.from_pretrained("ViT-B/32")
        pipeline = make_pipeline(clipkit.CLIPEncoder(model), LogisticRegression(max_iter=1000))
        pipeline.fit(["cat.jpg", "dog.jpg"], ["cat", "dog"])

    Args:
        model: a CLIP, or the name of one, which each `fit` loads. Clones share the CLIP.
        batch_size: images encoded at once.
        workers: processes that read and preprocess; 0 for threads of this one.

    Attributes:
        model_: the CLIP, after `fit`.
    """

    def __init__(
        self,
        model: CLIP | str | os.PathLike[str] = "tiny",
        *,
        batch_size: int = 64,
        workers: int = 0,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.workers = workers

    def fit(self, X: object = None, y: object = None) -> "Self":
        """Load the model; there is nothing else to fit, and neither X nor y is looked at."""
        self.model_ = as_model(self.model)
        return self

    def transform(self, X: Images) -> Any:
        """Return the features of images, (N, D) float32 of unit length.

        Args:
            X: a list, an array or a column of a table with N paths, PIL images, bytes or NumPy
                images; an array of these (N, h, w, 3) uint8; or a folder or a data set.

        Returns:
            An array, or a table after `set_output(transform="pandas")`.

        Raises:
            ImageError: if an image cannot be read; it is named.
            ConfigError: if it is not fitted yet.
        """
        self._check_fitted("model_")
        check_path(X)
        features = embed_images(
            self.model_, read_images(X), batch_size=self.batch_size, workers=self.workers
        ).numpy()
        if getattr(self, "_output", "default") != "pandas":
            return features
        pandas: Any = importlib.import_module("pandas")
        given: Any = X
        index = given.index if hasattr(given, "iloc") else None  # lists have an index() too
        return pandas.DataFrame(features, columns=self.get_feature_names_out(), index=index)

    def fit_transform(self, X: Images, y: object = None) -> Any:
        """Load the model, and return what `transform` makes of X."""
        return self.fit(X, y).transform(X)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Return a name for each of the D features: clip0, clip1 and so on, (D,)."""
        self._check_fitted("model_")
        names = [f"clip{i}" for i in range(self.model_.config.embed_dim)]
        return np.array(names, dtype=object)

    def set_output(self, *, transform: str | None = None) -> "Self":
        """Choose what `transform` returns: "default" an array, "pandas" a table.

        None changes nothing.

        Raises:
            ConfigError: for anything else.
        """
        if transform not in (None, "default", "pandas"):
            raise ConfigError(f"transform must be 'default' or 'pandas', not {transform!r}")
        if transform is not None:
            self._output = transform
        return self

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn is to know of the estimator. It is called by scikit-learn."""
        sklearn: Any = importlib.import_module("sklearn.utils")
        return sklearn.Tags(
            estimator_type="transformer",
            target_tags=sklearn.TargetTags(required=False),
            transformer_tags=sklearn.TransformerTags(preserves_dtype=[]),
            input_tags=sklearn.InputTags(two_d_array=False, string=True),
            no_validation=True,  # what an image is, no check of rows and columns can say
        )
