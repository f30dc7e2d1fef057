"""Score classes at each pixel of a photo, by texts alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.zero_shot import weights_of_prompts
from clipkit.clip import CLIP
from clipkit.data.decode import Readable, read_image
from clipkit.data.preprocess import Preprocess
from clipkit.errors import ConfigError, ImageError
from clipkit.fields import is_number, is_positive
from clipkit.inspect import towers
from clipkit.inspect.dense import Affinity, check_method, dense_features
from clipkit.inspect.refine import refine_scores
from clipkit.inspect.windows import average_windows, enlarge, lay_windows, working_size
from clipkit.prompts import TEMPLATES, ClassNames, Templates, render

BACKGROUND = "background"
LOGIT_SCALE = 40.0  # the usual one in the field, softer than CLIP's own of 100
BATCH_SIZE = 8  # windows

MapMethod: TypeAlias = Literal["neighbors", "values", "queries"]
Photo: TypeAlias = "Readable | Tensor"


class ClassMapper:
    """Score classes at each pixel of photos. The texts are encoded once.

    A photo is resized, cut into windows that overlap, and each window becomes a dense map of
    features. The cosines with the texts are averaged where windows overlap, enlarged, and a softmax
    over all names makes probabilities of them.

    Beside the model and the result, there are in memory the photo at its working size (12 bytes a
    pixel), one batch of windows in the tower, and 4 bytes for each name and patch; with `refine`,
    at most 18 for each name and pixel of the working size, and 250 for each of these pixels.

    Args:
        model: a CLIP, with a `Preprocess`.
        class_names: C names; or label -> its name, or a list of its names, of which the best counts
            at each pixel.
        templates: as in `clipkit.zero_shot_weights`. "imagenet" is the usual choice here.
        background: adds a last row for whatever is none of the classes. As names ("wall", "sky"),
            it is a class of its own. As a number from 0 to 1, it is the probability that the best
            class must exceed.
        method: as in `dense_features`.
        window: side of a window in pixels; the tower's own shorter side if not given.
        stride: pixels from one window to the next; half a window if not given. Both are rounded to
            patches.
        short_side: to which the shorter side of a photo is resized; one and a half windows if not
            given, 336 for a tower of 224.
        refine: let the scores follow the edges in the photo. See
            `clipkit.inspect.refine.refine_scores`.
        affinity: as in `dense_features`, of the windows.
        logit_scale: by which cosines are multiplied before the softmax.
        batch_size: windows in a batch.

    Attributes:
        labels: the C labels, and "background" behind them if there is one.

    Raises:
        ConfigError: if an argument is impossible.
        TokenizerError: for a prompt that is too long.

    Example:
        mapper = clipkit.inspect.ClassMapper(model, ["cat", "sofa"], background=["wall", "floor"])
        for path in paths:
            mask = mapper.indices(path)  # (H, W), 2 where neither cat nor sofa is
    """

    def __init__(
        self,
        model: CLIP,
        class_names: ClassNames | Iterable[str],
        templates: Templates | None = TEMPLATES,
        *,
        background: Sequence[str] | float | None = None,
        method: MapMethod | None = None,
        window: int | None = None,
        stride: int | None = None,
        short_side: int | None = None,
        refine: bool = False,
        affinity: Affinity | None = None,
        logit_scale: float = LOGIT_SCALE,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        visual = towers.image_tower_of(model, "class_map")
        check_method(method, None, affinity)
        if towers.is_vit(visual) and visual.proj is None:
            raise ConfigError(
                "class_map compares patches with texts, and visual.proj, which brings patches into "
                "their space, was taken away: put it back, or load the checkpoint anew"
            )
        if cast("str | None", method) == "raw":
            raise ConfigError('method="raw" is not in the space of the texts: take another')
        self._preprocess = _check_preprocess(model)
        self.model = model
        self._cell = towers.cell_of(visual)
        window = min(visual.resolution) if window is None else window
        self._window = _check_side("window", window, self._cell)
        self._stride = _check_stride(stride, self._window)
        side = self._window * 3 // 2 if short_side is None else short_side
        self._short_side = _check_side("short_side", side, self._cell)
        self._batch_size = _check_side("batch_size", batch_size, 1)
        if not is_number(logit_scale) or logit_scale <= 0:
            raise ConfigError(f"logit_scale must be a number above 0, not {logit_scale!r}")
        self._logit_scale = logit_scale
        self._method: MapMethod | None = method
        self._affinity = affinity
        self._refine = refine
        names = _name_queries(class_names, templates, background)
        self._threshold = float(background) if isinstance(background, int | float) else None
        self._counts = names.counts
        self.labels = names.labels
        self._texts = weights_of_prompts(model, names.prompts)  # (names, D)

    def __call__(self, image: Photo, *, size: tuple[int, int] | None = None) -> Tensor:
        """Return the score of each class at each pixel.

        Args:
            image: a path, the bytes of a file, an open file, a PIL or a NumPy image, or a tensor
                (3, h, w) uint8 in 0-255 or floating in 0-1.
            size: (height, width) of the result; that of the image if not given.

        Returns:
            (labels, height, width) float32 on the CPU: probabilities among all names, for each
            class that of its best name. `argmax(dim=0)` gives the class of each pixel.

        Raises:
            ImageError: if the image cannot be read, or is too thin.
            ConfigError: if the size is impossible.
        """
        maps, size = self._maps(image, size)
        shape = (len(self.labels), *size)
        scores = torch.empty(shape, dtype=torch.float32, device="cpu")
        for strip, cosines in enlarge(maps, size):
            scores[:, strip] = self._probabilities(cosines).cpu()
        return scores

    def indices(self, image: Photo, *, size: tuple[int, int] | None = None) -> Tensor:
        """Return the index into `labels` of the best class of each pixel, (height, width) int64.

        It needs less memory than the scores. Arguments and errors are those of the call.
        """
        maps, size = self._maps(image, size)
        indices = torch.empty(size, dtype=torch.int64, device="cpu")
        for strip, cosines in enlarge(maps, size):
            indices[strip] = self._probabilities(cosines).argmax(dim=0).cpu()
        return indices

    @torch.no_grad()
    def _maps(self, image: Photo, size: tuple[int, int] | None) -> tuple[Tensor, tuple[int, int]]:
        """Return the cosines with all names, (names, rows, columns), and the size of the result."""
        photo: Any = image if isinstance(image, Tensor) else read_image(image)
        own = _size_of(photo)
        size = own if size is None else _check_size(size)
        working = working_size(own, self._short_side, self._cell)
        prepare = replace(
            self._preprocess,
            resolution=working,
            config=replace(self._preprocess.config, resize_mode="squash"),
        )
        pixels = prepare(photo).to(self.model.device)  # (3, *working)
        windows = lay_windows(working, self._cell, self._window, self._stride)
        maps = average_windows(pixels, windows, self._cosines, self._batch_size)
        if not self._refine:
            return maps, size
        at_pixels = F.interpolate(maps[None], working, mode="bilinear", align_corners=False)[0]
        return refine_scores(at_pixels, pixels), size

    def _cosines(self, windows: Tensor) -> Tensor:
        """Return the cosines with all names: (n, 3, h, w) -> (n, names, rows, columns)."""
        features = dense_features(self.model, windows, self._method, affinity=self._affinity)
        texts = self._texts.to(features.device)  # the model may have moved
        return torch.einsum("ndhw,qd->nqhw", F.normalize(features.float(), dim=1), texts)

    @torch.no_grad()
    def _probabilities(self, cosines: Tensor) -> Tensor:
        """Return the score of each label: (names, ...) -> (labels, ...)."""
        probabilities = (self._logit_scale * cosines).softmax(dim=0)
        if max(self._counts) > 1:
            stops = list(accumulate(self._counts))
            probabilities = torch.stack(
                [
                    probabilities[stop - count : stop].amax(dim=0)
                    for count, stop in zip(self._counts, stops, strict=True)
                ]
            )
        if self._threshold is None:
            return probabilities
        return torch.cat([probabilities, torch.full_like(probabilities[:1], self._threshold)])


def class_map(
    model: CLIP,
    image: Photo,
    class_names: ClassNames | Iterable[str],
    templates: Templates | None = TEMPLATES,
    *,
    background: Sequence[str] | float | None = None,
    method: MapMethod | None = None,
    window: int | None = None,
    stride: int | None = None,
    short_side: int | None = None,
    refine: bool = False,
    affinity: Affinity | None = None,
    logit_scale: float = LOGIT_SCALE,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """Return the score of each class at each pixel of a photo, by texts alone.

    For several photos, a `ClassMapper` encodes the texts once.

    Args:
        image: as a `ClassMapper` takes it when it is called.
        model, class_names, templates, background, method, window, stride, short_side, refine,
            affinity, logit_scale, batch_size: as in `ClassMapper`.

    Returns:
        (C, height, width) float32 on the CPU, as large as the photo, with a last row for the
        background if there is one. `argmax(dim=0)` gives the class of each pixel.

    Raises:
        ConfigError, TokenizerError: as `ClassMapper`.
        ImageError: if the image cannot be read, or is too thin.

    Example:
        scores = clipkit.inspect.class_map(model, "cat.jpg", ["cat", "sofa"], background=0.6)
        is_cat = scores.argmax(dim=0) == 0  # (H, W)
    """
    mapper = ClassMapper(
        model,
        class_names,
        templates,
        background=background,
        method=method,
        window=window,
        stride=stride,
        short_side=short_side,
        refine=refine,
        affinity=affinity,
        logit_scale=logit_scale,
        batch_size=batch_size,
    )
    return mapper(image)


@dataclass(frozen=True)
class _Queries:
    """Hold the labels of the scores, how many names each has, and the prompts of each name."""

    labels: list[str]
    counts: list[int]
    prompts: list[list[str]]


def _name_queries(
    class_names: ClassNames | Iterable[str],
    templates: Templates | None,
    background: Sequence[str] | float | None,
) -> _Queries:
    """Return prompts for each name of each class, with those of the background at the end."""
    labels, counts, prompts = _split_names(class_names, templates)
    if background is None:
        return _Queries(labels, counts, prompts)
    if BACKGROUND in labels:
        raise ConfigError(
            f"a class is named {BACKGROUND!r}, as the last row would be: leave background out, or "
            "rename the class"
        )
    if not isinstance(background, int | float):
        if not isinstance(background, list | tuple) or not background:
            raise ConfigError(
                "background must be a list of names, such as ['wall', 'sky'], or a probability "
                f"from 0 to 1, not {background!r}"
            )
        _, own_counts, own_prompts = _split_names({BACKGROUND: list(background)}, templates)
        return _Queries([*labels, BACKGROUND], counts + own_counts, prompts + own_prompts)
    if isinstance(background, bool) or not 0 <= background <= 1:
        raise ConfigError(
            f"background must be a probability from 0 to 1, or names, not {background!r}"
        )
    return _Queries([*labels, BACKGROUND], counts, prompts)


def _split_names(
    class_names: ClassNames | Iterable[str], templates: Templates | None
) -> tuple[list[str], list[int], list[list[str]]]:
    """Return labels, how many names each has, and the prompts of each name."""
    labels, prompts = render(class_names, templates)
    counts = [1] * len(labels)
    if isinstance(class_names, Mapping):
        named = cast("Mapping[str, str | Sequence[str]]", class_names)
        own_names = [named[label] for label in labels]
        counts = [1 if isinstance(own, str) else len(own) for own in own_names]
    split: list[list[str]] = []
    for own, count in zip(prompts, counts, strict=True):
        each = len(own) // count  # `render` puts those of a name one after the other
        split += [own[start : start + each] for start in range(0, len(own), each)]
    return labels, counts, split


def _check_preprocess(model: CLIP) -> Preprocess:
    given: object = model.preprocess
    if not isinstance(given, Preprocess):
        raise ConfigError(
            "class_map prepares photos in a size of its own, which model.preprocess, "
            f"{type(given).__name__}, cannot do: set model.preprocess = clipkit.Preprocess("
            "model.config.vision.resolution, model.config.preprocess)"
        )
    return given


def _check_side(name: str, value: object, lowest: int) -> int:
    if not is_positive(value) or cast(int, value) < lowest:
        raise ConfigError(f"{name} must be an integer from {lowest} on, not {value!r}")
    return cast(int, value)


def _check_stride(stride: object, window: int) -> int:
    """Return the pixels from one window to the next. Between windows no pixel may be left out."""
    value = _check_side("stride", window // 2 if stride is None else stride, 1)
    if value > window:
        raise ConfigError(
            f"stride={value} is more than the window of {window} pixels, and would leave pixels "
            "out: pass a smaller stride, or a larger window"
        )
    return value


def _check_size(size: object) -> tuple[int, int]:
    sides = cast("Sequence[Any]", size) if isinstance(size, list | tuple) else ()
    if len(sides) != 2 or not all(is_positive(side) for side in sides):
        raise ConfigError(f"size must be (height, width), two positive integers, not {size!r}")
    return sides[0], sides[1]


def _size_of(photo: Any) -> tuple[int, int]:
    """Return (height, width) of a PIL image, or of a tensor of one image."""
    if not isinstance(photo, Tensor):
        return photo.height, photo.width
    if photo.ndim != 3 or 0 in photo.shape:
        raise ImageError(
            f"a photo as a tensor must be (3, height, width), not {tuple(photo.shape)}: pass those "
            "of a batch one by one"
        )
    return photo.shape[1], photo.shape[2]
