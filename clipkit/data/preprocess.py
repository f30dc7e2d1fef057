"""Pictures become the normalised batch that the image tower reads.

An ordinary PIL image (RGB, grey, CMYK, opaque RGBA) gives the same bits as OpenAI's transform (openai/CLIP, clip.py:
Resize, CenterCrop, RGB, ToTensor, Normalize) and, in the other resize modes, as open_clip's. Deliberate differences:

- The orientation noted in EXIF is honoured; a camera's portrait photo is not classified lying on its side.
- Transparent parts show white instead of whatever colour the file hides behind them.
- Palette and 1-bit pictures are converted before they are resized, since PIL resizes them by nearest neighbour.
- 16-bit grey is scaled to 8 bits; PIL would clip nearly all of it to white.
- Padding in mode "longest" is black for CMYK too, where a raw 0 means white, and a side never shrinks to nothing.
- Tensors are clamped to 0-1 after each pass of resizing, as 8-bit pixels are; the bicubic filter overshoots.
- For a target that is not square, bilinear means bilinear in mode "shortest" too; open_clip takes bicubic there.
"""

import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F

from clipkit.config import PreprocessConfig, check_choice
from clipkit.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

# A 1 x 5000 strip would take a gigabyte once its short side is scaled up; what grows beyond this is refused.
_MAX_RESIZED_PIXELS = 2**26

# Names that a picture's file ends in, for finding them in folders.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# The EXIF tag and how each of its values is undone (CIPA DC-008, section 4.6.4; 1 is upright).
_EXIF_ORIENTATION = 0x0112
_EXIF_TURNS = dict(
    enumerate(
        "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split(),
        start=2,
    )
)


@dataclass(frozen=True)
class Preprocess:
    """Turns a picture into a float32 tensor, resized to `resolution` (height, width) and normalised by `config`.

    `backend` says who resizes pictures: "pil", the same bits as the references, or "tensor", torch's kernel for 8-bit
    tensors, which takes half the time and is one level of 255 off on photos: `model.preprocess =
    dataclasses.replace(model.preprocess, backend="tensor")`.

    It holds no state, so it can be pickled, compared, and shared between threads and worker processes.
    """

    resolution: tuple[int, int]
    config: PreprocessConfig
    backend: Literal["pil", "tensor"] = "pil"

    def __post_init__(self) -> None:
        sides = self.resolution if isinstance(self.resolution, list | tuple) else ()
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ConfigError(
                f"Preprocess.resolution must be (height, width), two positive integers, not {self.resolution!r}"
            )
        check_choice(self, "backend", ("pil", "tensor"))
        object.__setattr__(self, "resolution", tuple(sides))

    def __call__(self, image: "Image | str | os.PathLike[str] | torch.Tensor") -> torch.Tensor:
        """Preprocess one picture, or a batch of pictures that is already a tensor.

        Args:
            image: a PIL image; a path (the first frame, if there are many); or an RGB tensor (3, h, w) or (N, 3, h, w),
                uint8 in 0-255 or floating in 0-1, on any device. The tensor is never modified, nor shared.

        Returns:
            float32, contiguous: (3, H, W), or (N, 3, H, W) for a batch; on the CPU, and of a tensor on its own device.

        Raises:
            ImageError: the picture cannot be read, or its type, shape, dtype or range is not one of those above.
        """
        if isinstance(image, torch.Tensor):
            return self._from_tensor(image)
        from PIL.Image import Image

        if isinstance(image, Image | str | os.PathLike):
            return self._from_picture(read_image(image))
        if isinstance(image, np.ndarray):
            raise ImageError(
                f"Preprocess takes no NumPy array ({image.dtype}, shape {image.shape}), its layout would be a guess. "
                "Pass PIL.Image.fromarray(array) for uint8 RGB (h, w, 3), or torch.from_numpy(array).permute(2, 0, 1)"
            )
        raise ImageError(
            f"Preprocess takes a PIL image, a path or a tensor, not {type(image).__name__}. Open a file object or "
            "io.BytesIO(data) with PIL.Image.open; preprocess a list item by item and torch.stack the results"
        )

    def _from_picture(self, picture: "Image") -> torch.Tensor:
        """An 8-bit L, RGB or CMYK picture to (3, H, W)."""
        from PIL.Image import Resampling

        height, width = self._fit(picture.height, picture.width)
        top, left, bottom, right = self._window(height, width)
        resize = (width, height) != picture.size
        # PIL resizes all that the window leaves out: cut beforehand, some edges would differ by a level.
        if resize and self.backend == "pil":
            picture = picture.resize((width, height), Resampling[self.config.interpolation.upper()])
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        if resize and self.backend == "tensor":
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[
                None
            ]  # (h, w, 3) -> (1, 3, h, w)
            pixels = F.interpolate(
                pixels, (height, width), mode=self.config.interpolation, antialias=True
            )[0]
            pixels = F.pad(
                pixels, (-left, right - width, -top, bottom - height)
            )  # negative padding crops
        else:
            picture = picture.crop(
                (left, top, right, bottom)
            )  # PIL paints what lies outside the picture black
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
        return self._normalise(pixels.contiguous().to(torch.float32).div_(255))

    def _from_tensor(self, image: torch.Tensor) -> torch.Tensor:
        """(3, h, w) or (N, 3, h, w) to (3, H, W) or (N, 3, H, W)."""
        _check_tensor(image)
        pixels = image.to(torch.float32)
        if image.dtype == torch.uint8:
            pixels = pixels.div_(255)
        height, width = self._fit(image.shape[-2], image.shape[-1])
        if (height, width) != image.shape[-2:]:
            pixels = pixels.reshape(-1, *image.shape[-3:])  # (3, h, w) -> (1, 3, h, w)
            for size in (
                (image.shape[-2], width),
                (height, width),
            ):  # PIL too clamps after each of the two passes
                pixels = F.interpolate(
                    pixels, size, mode=self.config.interpolation, antialias=True
                ).clamp(0, 1)
            pixels = pixels.reshape(*image.shape[:-2], height, width)
        top, left, bottom, right = self._window(height, width)
        pixels = F.pad(
            pixels, (-left, right - width, -top, bottom - height)
        )  # negative padding crops
        # clamp makes the copy that may be normalised in place.
        return self._normalise(pixels.clamp(0, 1).contiguous())

    def _fit(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) to which a picture of this size is resized, rounded as torchvision and open_clip do."""
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
                f"an image {width} wide and {height} high is too thin: to cover {target_width} x {target_height} it "
                f"would grow to {fitted[1]} x {fitted[0]} pixels. Crop it, or use resize_mode 'squash' or 'longest'"
            )
        return fitted

    def _window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, bottom, right of what is kept of a resized picture; where it reaches outside, black is added."""
        top, left = (_start(*sides) for sides in zip((height, width), self.resolution, strict=True))
        return top, left, top + self.resolution[0], left + self.resolution[1]

    def _normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Subtract the mean and divide by the standard deviation of each channel, in place; (..., 3, H, W) in 0-1."""
        # The order and the float32 constants are torchvision's, as one multiply-add would not give the same bits.
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
            for values in (self.config.mean, self.config.std)
        )
        return pixels.sub_(mean).div_(std)


def _start(size: int, target: int) -> int:
    """First row or column of the centred window, negative for padding; both roundings are torchvision's."""
    return round((size - target) / 2) if size >= target else -((target - size) // 2)


def read_image(image: "Image | str | os.PathLike[str] | IO[bytes]") -> "Image":
    """Decode a path, an open file or a PIL image, turn it upright, and reduce it to 8-bit L, RGB or CMYK.

    Raises:
        ImageError: if it cannot be read; chained to the reason.
    """
    from PIL import Image

    if isinstance(image, Image.Image):
        name = f"the PIL image (mode {image.mode}, size {image.size})"
    elif not isinstance(image, str | os.PathLike):
        name = "the image in the open file"
    else:
        name = f"the image at the path {os.fspath(image)!r}"
    try:
        if isinstance(image, Image.Image):
            return _eight_bit(image)
        with Image.open(image) as opened:
            return _eight_bit(opened)
    except ImageError as error:
        raise ImageError(f"cannot use {name}: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(
            f"cannot find {name}. Check its spelling and the working directory"
        ) from error
    except Exception as error:  # on broken bytes decoders raise nearly anything: OSError, SyntaxError, struct.error
        raise ImageError(
            f"cannot read {name}: {error}. Is it complete, and of a type that Pillow reads?"
        ) from error


def _eight_bit(image: "Image") -> "Image":
    """The picture upright, in mode L, RGB or CMYK, which are resized as they are, as in OpenAI's transform."""
    from PIL import Image

    if 0 in image.size:
        raise ImageError("it has no pixels")
    image.load()
    image = _upright(image)
    if image.mode == "F":
        raise ImageError(
            "mode F holds floats of unknown range. Scale them to 0-255 and convert them with "
            "PIL.Image.fromarray(array.astype('uint8')), or pass a float tensor (3, h, w) in 0-1"
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.int32)
        if levels.min() < 0 or levels.max() > 65535:
            raise ImageError(
                f"its integers run from {levels.min()} to {levels.max()}, but 16-bit grey is 0-65535. Scale them first"
            )
        return Image.fromarray(
            ((levels + 128) // 257).astype(np.uint8)
        )  # nearest; 65535 = 255 x 257
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode == "La":  # premultiplied grey; PIL converts it to nothing else
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return (
        image
        if image.mode in ("L", "RGB", "CMYK")
        else image.convert("L" if image.mode == "1" else "RGB")
    )


def _upright(image: "Image") -> "Image":
    """The picture turned as its EXIF says; as it is where there is no EXIF or none that can be read."""
    from PIL.Image import Transpose

    # PIL's own exif_transpose copies upright pictures too, and rewrites the metadata, which fails on broken ones.
    try:
        turn = _EXIF_TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # the pixels are loaded and sound: broken metadata is no reason to lose them
        return image
    if not turn:
        return image
    image = image.transpose(Transpose[turn])
    image.info = {
        key: image.info[key] for key in ("transparency",) if key in image.info
    }  # or it would turn again
    return image


def _check_tensor(image: torch.Tensor) -> None:
    """Raise `ImageError` unless this is (3, h, w) or (N, 3, h, w) RGB, uint8 or floating in 0-1."""
    shape = tuple(image.shape)
    if image.ndim not in (3, 4) or shape[-3] != 3:
        hint = "Grey images need image.expand(3, -1, -1), RGBA ones image[:3]"
        if image.ndim in (3, 4) and shape[-1] == 3:
            order = "2, 0, 1" if image.ndim == 3 else "0, 3, 1, 2"
            hint = f"The channels seem to come last: use image.permute({order})"
        raise ImageError(
            f"a tensor of images must be (3, h, w) or (N, 3, h, w), not {shape}. {hint}"
        )
    if 0 in shape[-2:]:
        raise ImageError(f"a tensor of shape {shape} has no pixels")
    if image.dtype == torch.uint8:
        return
    if image.dtype not in _FLOATS:
        raise ImageError(
            f"a tensor of images must be uint8 in 0-255 or floating in 0-1, not {image.dtype}. "
            "If the values are in 0-255, use image.to(torch.uint8)"
        )
    if image.numel() == 0:
        return
    low, high = (value.item() for value in image.detach().aminmax())
    slack = 4 * torch.finfo(image.dtype).eps  # undoing a normalisation leaves 1.0000001 where 1 was
    if not (-slack <= low and high <= 1 + slack):  # NaN fails both
        raise ImageError(
            f"a float tensor of images must lie in 0-1, but its values run from {low:.6g} to {high:.6g}. If they are "
            "in 0-255, divide by 255; if they are normalised already, give them to encode_image as they are"
        )
