"""Turn images into the normalized tensors that the image tower reads.

An ordinary PIL image (RGB, gray, CMYK, opaque RGBA) gives the same bits as OpenAI's transform
(openai/CLIP, clip.py: Resize, CenterCrop, RGB, ToTensor, Normalize). In the other resize modes it
gives the same bits as open_clip's. The differences are deliberate:

- The orientation noted in EXIF is honored. Otherwise a portrait photo would be classified lying on
  its side.
- Transparent parts show white. The references show whatever color the file hides behind them.
- Palette and 1-bit images are converted before they are resized, since PIL resizes them by nearest
  neighbor.
- 16-bit gray is scaled to 8 bits. PIL would clip nearly all of it to white.
- Padding in mode "longest" is black for CMYK too, where a raw 0 means white, and a side never
  shrinks to nothing.
- Tensors are clamped to 0-1 after each pass of resizing, as 8-bit pixels are, since the bicubic
  filter overshoots.
- Mode "shortest" with bilinear interpolation is bilinear for oblong targets too. There open_clip
  takes bicubic.
"""

import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Literal, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clipkit.config import PreprocessConfig
from clipkit.data.arrays import is_array
from clipkit.data.decode import Readable, is_encoded, read_image
from clipkit.errors import ConfigError, ImageError
from clipkit.fields import as_sequence, check_choice, is_positive
from clipkit.moved import PREPROCESS, moved

if TYPE_CHECKING:
    from PIL.Image import Image

# A strip of 1 x 5000 would take a gigabyte once its short side is scaled up. An image that grows
# beyond this many pixels is refused.
_MAX_RESIZED_PIXELS = 2**26

# A JPEG that is decoded at a reduced size keeps so many times the pixels of each side, so that the
# filter that resizes it has something to average.
_SPARE = 2

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Preprocess:
    """Turn an image into a float32 tensor: resized, cropped or padded, and normalized.

    It holds no state. It can be pickled, compared, and shared between threads and processes.

    Attributes:
        resolution: (height, width) of the result in pixels.
        config: the mean, the standard deviation and the way to resize.
        backend: what resizes images. "pil" gives the same bits as the references. "tensor" is
            torch's kernel for 8-bit tensors: it takes half the time, and is at most one level
            of 255 off on photos.
        reduced_jpegs: decode JPEG files at 1/2, 1/4 or 1/8 of their size where that leaves at least
            twice the resolution. Large photos take less time, and their pixels differ from the
            references' by some levels of 255.

    Raises:
        ConfigError: if a value is impossible.

    Example:
        preprocess = Preprocess((224, 224), PreprocessConfig())
        batch = preprocess("photo.jpg").unsqueeze(0)  # (1, 3, 224, 224)
        faster = dataclasses.replace(preprocess, backend="tensor", reduced_jpegs=True)
    """

    resolution: tuple[int, int]
    config: PreprocessConfig
    backend: Literal["pil", "tensor"] = "pil"
    reduced_jpegs: bool = False

    def __post_init__(self) -> None:
        sides = as_sequence(self.resolution) or ()
        if len(sides) != 2 or not all(is_positive(side) for side in sides):
            raise ConfigError(
                "Preprocess.resolution must be (height, width), two positive integers, "
                f"not {self.resolution!r}"
            )
        height, width = self.resolution
        if height * width > _MAX_RESIZED_PIXELS:
            raise ConfigError(
                f"Preprocess.resolution {self.resolution!r} is more than the "
                f"{_MAX_RESIZED_PIXELS:,} pixels that fit into memory"
            )
        given: object = self.config
        if not isinstance(given, PreprocessConfig):
            raise ConfigError(f"Preprocess.config must be a PreprocessConfig, not {given!r}")
        check_choice(self, "backend", ("pil", "tensor"))
        check_choice(self, "reduced_jpegs", (False, True))
        object.__setattr__(self, "resolution", (height, width))

    @property
    def transforms(self) -> NoReturn:
        """Say what to do in the place of OpenAI's list of transforms, which is not here."""
        raise moved("clipkit's Preprocess", "transforms", PREPROCESS)

    def __call__(
        self,
        image: "Image | str | os.PathLike[str] | bytes | IO[bytes] | NDArray[np.uint8] | Tensor",
    ) -> Tensor:
        """Preprocess one image, or a batch of images that is already a tensor.

        Args:
            image: a PIL image; a path, the bytes of a file or an open file, of which the first
                frame is taken if there are many; a NumPy array, uint8 in 0-255: RGB (h, w, 3) in
                that order of channels (OpenCV has BGR: pass array[:, :, ::-1]), RGBA (h, w, 4) or
                gray (h, w); or an RGB tensor (3, h, w) or (N, 3, h, w), uint8 in 0-255 or floating
                in 0-1, on any device. Neither array nor tensor is modified or shared.

        Returns:
            (3, H, W) float32, contiguous, on the CPU. A tensor stays on its device, and a batch
            gives (N, 3, H, W).

        Raises:
            ImageError: if the image cannot be read, or its type, shape, dtype or range is none of
                those above.
        """
        if isinstance(image, Tensor):
            return self._from_tensor(image)
        from PIL.Image import Image

        if isinstance(image, Image | str | os.PathLike) or is_encoded(image) or is_array(image):
            return self._from_image(self.read_source(image))
        raise ImageError(
            "Preprocess takes a PIL image, a path, the bytes of a file, an open file, a NumPy "
            f"array or a tensor, not {type(image).__name__}. Preprocess a list item by item, and "
            "torch.stack them"
        )

    def read_source(self, image: Readable) -> "Image":
        """Return an image as `read_image` does, a JPEG file in the size that is needed here."""
        least = _SPARE * max(self.resolution) if self.reduced_jpegs else None
        return read_image(image, least_side=least)

    def _from_image(self, image: "Image") -> Tensor:
        """Turn an image in mode L, RGB or CMYK into (3, H, W) float32."""
        size = self._fit(image.height, image.width)
        resizes = size != (image.height, image.width)
        if resizes and self.backend == "tensor":
            pixels = self._resize_by_torch(image, size)
        else:
            pixels = self._resize_by_pil(image, size)
        return self._normalize(pixels.contiguous().to(torch.float32).div_(255))

    def _resize_by_pil(self, image: "Image", size: tuple[int, int]) -> Tensor:
        """Resize an image to (height, width) and crop or pad it to (3, H, W) uint8.

        PIL also resizes what is cut off afterwards. If that were cut off before, some pixels at the
        edges would differ by a level from the references.
        """
        from PIL.Image import Resampling

        height, width = size
        if size != (image.height, image.width):
            image = image.resize((width, height), Resampling[self.config.interpolation.upper()])
        top, left, bottom, right = self._window(height, width)
        # PIL paints what lies outside of the image black, which in CMYK would be white.
        image = _as_rgb(image).crop((left, top, right, bottom))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)

    def _resize_by_torch(self, image: "Image", size: tuple[int, int]) -> Tensor:
        """Resize an image to (height, width) and crop or pad it to (3, H, W) uint8."""
        pixels = torch.from_numpy(np.array(_as_rgb(image))).permute(2, 0, 1)  # -> (3, h, w)
        pixels = F.interpolate(
            pixels.unsqueeze(0),  # (3, h, w) -> (1, 3, h, w)
            size,
            mode=self.config.interpolation,
            antialias=True,
        )
        return self._crop_or_pad(pixels.squeeze(0))  # (1, 3, height, width) -> (3, H, W)

    def _from_tensor(self, image: Tensor) -> Tensor:
        """Turn (3, h, w) or (N, 3, h, w) into (3, H, W) or (N, 3, H, W) float32."""
        _check_tensor(image)
        pixels = image.to(torch.float32)
        if image.dtype == torch.uint8:
            pixels = pixels.div_(255)
        size = self._fit(image.shape[-2], image.shape[-1])
        if size != tuple(image.shape[-2:]):
            pixels = self._resize_floats(pixels, size)
        # clamp makes the copy that may be normalized in place.
        return self._normalize(self._crop_or_pad(pixels).clamp(0, 1).contiguous())

    def _resize_floats(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize (..., 3, h, w) in 0-1 to (..., 3, height, width).

        It takes one pass for each axis, the width first, and clamps after each, as PIL does.
        """
        height, width = size
        batch = pixels.reshape(-1, *pixels.shape[-3:])  # (..., 3, h, w) -> (n, 3, h, w)
        for target in ((pixels.shape[-2], width), (height, width)):
            batch = F.interpolate(
                batch, target, mode=self.config.interpolation, antialias=True
            ).clamp(0, 1)
        # (n, 3, height, width) -> (..., 3, height, width)
        return batch.reshape(*pixels.shape[:-2], height, width)

    def _fit(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) to which an image of this size is resized.

        The rounding is that of torchvision and open_clip.
        """
        target_height, target_width = self.resolution
        mode = self.config.resize_mode
        if mode == "squash":
            return self.resolution
        if mode == "shortest" and target_height == target_width:
            short = min(height, width)
            fitted = target_height * height // short, target_width * width // short
        else:
            pick = min if mode == "shortest" else max
            ratio = pick(height / target_height, width / target_width)
            fitted = max(1, round(height / ratio)), max(1, round(width / ratio))
        if fitted[0] * fitted[1] > _MAX_RESIZED_PIXELS:
            raise ImageError(
                f"an image {width} wide and {height} high is too thin: to cover {target_width} x "
                f"{target_height} it would grow to {fitted[1]} x {fitted[0]} pixels. Crop it, or "
                "use resize_mode 'squash' or 'longest'"
            )
        return fitted

    def _window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return top, left, bottom and right of what is kept of a resized image.

        Where they reach outside of it, black is added.
        """
        top = _start(height, self.resolution[0])
        left = _start(width, self.resolution[1])
        return top, left, top + self.resolution[0], left + self.resolution[1]

    def _crop_or_pad(self, pixels: Tensor) -> Tensor:
        """Cut or fill (..., 3, height, width) with zeros to (..., 3, H, W)."""
        height, width = pixels.shape[-2:]
        top, left, bottom, right = self._window(height, width)
        # Negative padding crops.
        return F.pad(pixels, (-left, right - width, -top, bottom - height))

    def _normalize(self, pixels: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation, in place.

        The order and the float32 constants are torchvision's. One multiplication and addition
        would not give the same bits.

        Args:
            pixels: (..., 3, H, W) float32 in 0-1.
        """
        mean = _per_channel(self.config.mean, pixels.device)
        std = _per_channel(self.config.std, pixels.device)
        return pixels.sub_(mean).div_(std)


def _as_rgb(image: "Image") -> "Image":
    return image if image.mode == "RGB" else image.convert("RGB")


def _per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    # (3,) -> (3, 1, 1)
    return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)


def _start(size: int, target: int) -> int:
    """Return the first row or column of the centered window, negative for padding.

    Both roundings are torchvision's.
    """
    if size >= target:
        return round((size - target) / 2)
    return -((target - size) // 2)


def _check_tensor(image: Tensor) -> None:
    """Raise `ImageError` unless this is (3, h, w) or (N, 3, h, w) RGB, uint8 or floating in 0-1."""
    _check_shape(tuple(image.shape))
    if image.dtype == torch.uint8:
        return
    if image.dtype not in _FLOATS:
        raise ImageError(
            f"a tensor of images must be uint8 in 0-255 or floating in 0-1, not {image.dtype}. "
            "If the values are in 0-255, use image.to(torch.uint8)"
        )
    if image.numel() > 0:
        _check_range(image)


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) not in (3, 4) or shape[-3] != 3:
        raise ImageError(
            f"a tensor of images must be (3, h, w) or (N, 3, h, w), not {shape}. "
            f"{_hint_at_shape(shape)}"
        )
    if 0 in shape[-2:]:
        raise ImageError(f"a tensor of shape {shape} has no pixels")


def _hint_at_shape(shape: tuple[int, ...]) -> str:
    if len(shape) in (3, 4) and shape[-1] == 3:
        order = "2, 0, 1" if len(shape) == 3 else "0, 3, 1, 2"
        return f"The channels seem to come last: use image.permute({order})"
    return "Gray images need image.expand(3, -1, -1), RGBA ones image[:3]"


def _check_range(image: Tensor) -> None:
    low, high = (value.item() for value in image.detach().aminmax())
    # Undoing a normalization leaves 1.0000001 where 1 was.
    slack = 4 * torch.finfo(image.dtype).eps
    if not (-slack <= low and high <= 1 + slack):  # NaN fails both
        raise ImageError(
            f"a float tensor of images must lie in 0-1, but its values run from {low:.6g} to "
            f"{high:.6g}. If they are in 0-255, divide by 255; if they are normalized already, "
            "give them to encode_image as they are"
        )
