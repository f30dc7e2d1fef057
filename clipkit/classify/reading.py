"""Say how images are read, and how often each is seen."""

from dataclasses import dataclass

from clipkit.data.views import check_views
from clipkit.errors import ConfigError


@dataclass(frozen=True)
class Reading:
    """Hold how images are read: so many at once, in so many processes, with a bar or without.

    Attributes:
        batch_size, workers, progress: as in `clipkit.extract_features`.
        views: as in `clipkit.embed_images`; None for as many as those of the calibration.
        calibrated: the views of the images that the classifier is calibrated on; None if it is not
            calibrated, or they are not known.

    Raises:
        ConfigError: for other views than those of the calibration, which would no longer hold.
    """

    batch_size: int
    workers: int
    progress: bool
    views: int | None = None
    calibrated: int | None = None

    def __post_init__(self) -> None:
        if self.views is None:
            return
        check_views(self.views)
        if self.calibrated not in (None, self.views):
            raise ConfigError(
                f"views={self.views} is not what the classifier is calibrated for, which is "
                f"views={self.calibrated}: leave views out, calibrate anew with "
                f"views={self.views}, or set classifier.calibration = None"
            )

    @property
    def times(self) -> int:
        """Return how often each image is seen."""
        return self.views or self.calibrated or 1

    def check_features(self) -> None:
        """Raise `ConfigError` if views are wanted of features, which have no images to see."""
        if self.views is not None and self.views > 1:
            raise ConfigError(
                f"views={self.views} would be ignored, for features are of images as they were "
                "seen: pass views to embed, which makes them"
            )
