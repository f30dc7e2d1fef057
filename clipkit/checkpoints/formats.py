"""Tell files of other formats by their first bytes, or by the end of their names."""

from pathlib import Path

from clipkit.errors import UnsupportedCheckpointError

# The bytes from some position on, and the name of the format.
_MAGIC: dict[bytes, tuple[int, str]] = {
    b"GGUF": (0, "a GGUF file of llama.cpp and its kin"),
    b"ggml": (0, "a GGML file"),
    b"lmgg": (0, "a GGML file"),
    b"\x89HDF\r\n\x1a\n": (0, "an HDF5 file, as Keras writes"),
    b"TFL3": (4, "a TensorFlow Lite model"),
    b"\x93NUMPY": (0, "a NumPy array"),
    b"\x1f\x8b": (0, "compressed with gzip"),
    b"BZh": (0, "compressed with bzip2"),
    b"ustar": (257, "a tar archive"),
    b"7z\xbc\xaf\x27\x1c": (0, "a 7z archive"),
    b"Rar!\x1a\x07": (0, "a RAR archive"),
    b"\xfd7zXZ\x00": (0, "compressed with xz"),
    b"\x28\xb5\x2f\xfd": (0, "compressed with zstandard"),
    b"\x04\x22\x4d\x18": (0, "compressed with LZ4"),
    b"\x89PNG\r\n\x1a\n": (0, "an image (PNG)"),
    b"\xff\xd8\xff": (0, "an image (JPEG)"),
    b"GIF8": (0, "an image (GIF)"),
    b"WEBP": (8, "an image (WebP)"),
    b"ftyp": (4, "an image (AVIF or HEIC) or a film"),
    b"II*\x00": (0, "an image (TIFF)"),
    b"MM\x00*": (0, "an image (TIFF)"),
    b"BM": (0, "an image (BMP)"),
    b"%PDF": (0, "a PDF document"),
    b"SQLite format 3\x00": (0, "an SQLite database"),
    b"PAR1": (0, "a Parquet table"),
    b"ARROW1": (0, "an Arrow table"),
}
# These formats have no bytes of their own.
_SUFFIXES = {
    ".onnx": "an ONNX graph",
    ".msgpack": "a Flax checkpoint",
    ".keras": "a Keras model",
    ".npz": "an archive of NumPy arrays",
    ".pt2": "an exported program",
    ".mlmodel": "a Core ML model",
    ".pb": "a TensorFlow graph",
    ".index": "an index of a TensorFlow checkpoint",
}
# In a folder these are told by their names too.
_MODEL_SUFFIXES = {
    **_SUFFIXES,
    ".h5": "a Keras model",
    ".gguf": "a GGUF file of llama.cpp and its kin",
    ".tflite": "a TensorFlow Lite model",
}
_REMEDY = (
    "clipkit reads safetensors and what torch.save writes: unpack it, or load it with the program "
    "that it is for and save the state_dict() of the torch model"
)
_IMAGE_REMEDY = "A model is loaded first, and model.embed_images([...]) takes images then"


def refuse_other_formats(path: Path, head: bytes) -> None:
    """Raise `UnsupportedCheckpointError` for a sound file of a format without weights of torch.

    Args:
        path: the file.
        head: its first 512 bytes.
    """
    # A safetensors file may begin with the bytes of any of them, which count its header.
    formats = {} if head[8:9] == b"{" else _MAGIC
    for magic, (start, name) in formats.items():
        if head[start : start + len(magic)] == magic:
            remedy = _IMAGE_REMEDY if name.startswith("an image") else _REMEDY
            raise UnsupportedCheckpointError(f"{path} is {name}. {remedy}")
    if path.suffix.lower() in _SUFFIXES:
        raise UnsupportedCheckpointError(
            f"{path} is {_SUFFIXES[path.suffix.lower()]}, by its name. {_REMEDY}"
        )


def describe_others(folder: Path) -> str:
    """Say which files of a folder are models in other formats, or nothing."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _MODEL_SUFFIXES]
    if not found:
        return ""
    kinds = [f"{path.name} is {_MODEL_SUFFIXES[path.suffix.lower()]}" for path in found[:3]]
    shown = ", ".join(kinds)
    return f" ({shown}. {_REMEDY})"


def refuse_zip(path: Path) -> None:
    """Raise `UnsupportedCheckpointError` for a zip archive that torch did not write."""
    raise UnsupportedCheckpointError(f"{path} is a zip archive without weights of torch. {_REMEDY}")
