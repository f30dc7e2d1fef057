"""Predict the classes of images: an image tower and a head, with labels."""

import os
from typing import IO, TYPE_CHECKING, Any, cast, overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from clipkit.classify.calibration import Calibration
from clipkit.classify.export import export
from clipkit.classify.export_calibration import check_exportable
from clipkit.classify.folder import as_path
from clipkit.classify.heads import Head
from clipkit.classify.inputs import (
    Inputs,
    check_path,
    features_and_paths,
    is_one_image,
)
from clipkit.classify.judgement import Wanted, check_wanted, judge, softened
from clipkit.classify.prediction import Prediction
from clipkit.classify.reading import Reading
from clipkit.clip import CLIP
from clipkit.data.pictures import Images
from clipkit.encode.embed import embed_images

if TYPE_CHECKING:
    from PIL.Image import Image


class Predictor(nn.Module):
    """Tie a CLIP's image tower, a head and its labels. `ImageClassifier` makes and keeps them.

    Args:
        model: the CLIP.
        head: from its features to logits.
        labels: C names, one per class.

    Attributes:
        calibration: what held-out images say about the head; None if it is not calibrated.
    """

    calibration: Calibration | None = None

    def __init__(self, model: CLIP, head: Head, labels: list[str]) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.labels = labels

    def forward(self, images: Tensor) -> Tensor:
        """Return the head's logits (N, C) float32 of preprocessed images (N, 3, H, W).

        Images may have any float dtype. A calibration's temperature is not applied.
        """
        return self.head(F.normalize(self.model.encode_image(images).float(), dim=-1))

    def embed(
        self,
        images: Images,
        *,
        views: int = 1,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> Tensor:
        """Return features for `fit` and `probabilities`, to compute them only once.

        Args:
            images: a folder, a list or a data set, as `clipkit.extract_features` takes them.
            views: how often each image is seen, 1, 2 or 10, as in `clipkit.embed_images`.
            batch_size: images encoded at once.
            workers: processes that read and preprocess; 0 for threads of this one.
            progress: whether to show a bar.

        Returns:
            (N, D) float32 on the CPU, of unit length.

        Raises:
            ImageError: if an image cannot be read; it is named.
        """
        check_path(images)
        return embed_images(
            self.model,
            images,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
            views=views,
        )

    def probabilities(
        self,
        images_or_features: Inputs,
        *,
        views: int | None = None,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> Tensor:
        """Return the probabilities of all classes, at the temperature of a calibration if any.

        Args:
            images_or_features: features (N, D) of unit length: a tensor, a NumPy array or what
                `extract_features` returns; or images as `embed` takes them.
            views: as in `embed`, for images; by default as those of a calibration are, or once.
            batch_size, workers, progress: as in `embed`, for images.

        Returns:
            (N, C) float32 on the CPU; each row has the sum 1.

        Raises:
            DataError: for features that are not of unit length.
            ConfigError: for other `views`, also other ones than those of a calibration, or for more
                than one with features.
            ImageError: if an image cannot be read; it is named.
        """
        reading = self._reading(views, batch_size, workers, progress)
        features, _ = features_and_paths(self.model, images_or_features, reading)
        return softened(self._logits(features), self.calibration).softmax(dim=-1).cpu()

    @property
    def views(self) -> int:
        """Return how often an image is seen by default: as those of a calibration were, or once."""
        return self._reading(None, 1, 0, progress=False).times

    @overload
    def predict(
        self,
        images: "Image",
        *,
        coverage: float | None = None,
        reject: bool = False,
        several: bool = False,
        views: int | None = None,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> Prediction: ...

    # A path may name an image or a folder, and an array be one image or many, which no type tells
    # apart; and bytes are a collection of numbers to a type checker.
    @overload
    def predict(
        self,
        images: str | os.PathLike[str] | bytes | bytearray | IO[bytes] | NDArray[np.uint8],
        *,
        coverage: float | None = None,
        reject: bool = False,
        several: bool = False,
        views: int | None = None,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> Any: ...

    @overload
    def predict(
        self,
        images: Inputs,
        *,
        coverage: float | None = None,
        reject: bool = False,
        several: bool = False,
        views: int | None = None,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> list[Prediction]: ...

    def predict(
        self,
        images: "Image | IO[bytes] | Inputs",
        *,
        coverage: float | None = None,
        reject: bool = False,
        several: bool = False,
        views: int | None = None,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> Any:
        """Return what is in an image, or in each of many.

        Example:
            classifier.predict("photo.jpg").top(5)
            for prediction in classifier.predict("photos/"):
                print(prediction.path, prediction.label)
            classifier.predict("photo.jpg", coverage=0.9).set

        Args:
            images: the path of an image, a PIL image, an image file's bytes or an open one, such as
                `UploadFile.file` of a web server, or a NumPy image: uint8 in 0-255, (h, w, 3) with
                channels in the order red, green, blue, RGBA (h, w, 4) or gray (h, w). OpenCV has
                blue first: pass `frame[:, :, ::-1]`. Or many: a folder, a list, an array (N, h, w,
                3), a data set, or features as `probabilities` takes them.
            coverage: how often the right label is to be in `Prediction.set`, between 0 and 1. This
                and the next need a calibrated classifier; see `ImageClassifier.calibrate`.
            reject: whether `Prediction.rejected` is to say if an image is of none of the classes,
                with the false alarms of the calibration.
            several: whether `Prediction.present` is to say which of the classes are in an image,
                each by itself. It needs a calibration by images with several labels.
            views: as in `embed`, for images; by default as those of a calibration are, or once.
            batch_size, workers, progress: as in `embed`, for images.

        Returns:
            One `Prediction` for one image; for many a list of them, each with its path.

        Raises:
            ConfigError: if the classifier is not calibrated for what is asked, or by too few
                images for such a coverage; or for `views` as `probabilities`.
            ImageError: if an image cannot be read; it is named.
            DataError: for features that are not of unit length.
        """
        wanted = Wanted(coverage, reject, several)
        check_wanted(wanted, self.calibration)  # before hours of encoding
        check_path(images)
        single = is_one_image(images)
        given = cast("Inputs", [images] if single else images)
        reading = self._reading(views, batch_size, workers, progress)
        features, paths = features_and_paths(self.model, given, reading)
        logits = self._logits(features)
        predictions = judge(self.labels, logits, paths, self.calibration, wanted)
        return predictions[0] if single else predictions

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the whole classifier as one file, from uint8 images to probabilities.

        The file takes RGB images (N, 3, H, W), N free, H and W those of `model.visual.resolution`,
        and returns (N, C) float32; of a calibrated classifier also the confidence (N,) of each
        image, and the presence (N, C) of each label. It computes in float32, whatever the model
        does. Before it gets its name, it is run on random images and must agree with the
        classifier.

        Of a `Preprocess` it has the mean and standard deviation: resizing and cropping stay
        outside. A `model.preprocess` that is an `nn.Module` becomes part of the file.

        The metadata of an `.onnx` have the labels, the size of its input, the mean and standard
        deviation, and what a calibration has to say, each as JSON; those of a `.pt2` are in its
        extra file `clipkit.json`. Weights above 2 GiB lie in a file `x.onnx.data` beside `x.onnx`.

        Args:
            path: ends in `.onnx` (which needs `clipkit-torch[export]`), or in `.pt2` for
                `torch.export.load`.

        Raises:
            ConfigError: for another ending, a missing package, a preprocessing that is another
                function, or a calibration on several views of each image.
            ExportError: if the file's probabilities differ by more than 1e-4.
            OutputError: if the file cannot be written.
        """
        self.model.check_original("export the classifier of")
        check_exportable(self.calibration)
        export(
            as_path(path),
            visual=self.model.visual,
            head=self.head,
            labels=self.labels,
            preprocess=self.model.preprocess,
            resolution=self.model.visual.resolution,
            calibration=self.calibration,
        )

    def _reading(self, views: int | None, batch_size: int, workers: int, progress: bool) -> Reading:
        """Return how images are read, as often as those of a calibration if `views` is None."""
        calibrated = None if self.calibration is None else self.calibration.views
        return Reading(batch_size, workers, progress, views, calibrated)

    def _logits(self, features: Tensor) -> Tensor:
        """Return the head's logits (N, C) float32 of features (N, D), on the model's device."""
        with torch.no_grad():
            return self.head(features.float().to(self.model.device))
