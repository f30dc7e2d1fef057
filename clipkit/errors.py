"""Everything clipkit raises on bad input, as one tree. Each error is also the builtin that fits.

ClipkitError
├── ConfigError (ValueError)              a configuration that contradicts itself or its weights
├── UnknownModelError (ValueError)        a model name that names nothing; close names are suggested
├── CheckpointError (RuntimeError)        a checkpoint that cannot be used
│   ├── CheckpointNotFoundError (FileNotFoundError)   no such file, folder, repository or hub entry
│   ├── CorruptCheckpointError            truncated, wrong checksum, not a checkpoint at all
│   ├── UnsafeCheckpointError             a pickle that asks for more than tensors
│   ├── UnsupportedCheckpointError        weights of a model that is not a plain CLIP
│   └── StateDictMismatchError            missing, unexpected or wrong-shaped weights, as a diff
├── DownloadError (RuntimeError)          the network failed; says what was tried and how to go on offline
├── TokenizerError (ValueError)           text or token ids that cannot be used
├── ImageError (ValueError)               an image that cannot be read or is out of range
├── DataError (ValueError)                a data set that cannot be read or used
├── TrainingError (RuntimeError)          training that cannot go on
└── ExportError (RuntimeError)            an exported file that does not compute what the classifier does
"""


class ClipkitError(Exception):
    """Root of every error that clipkit raises on purpose."""


class ConfigError(ClipkitError, ValueError):
    """A configuration value is impossible, missing, or contradicts the weights."""


class UnknownModelError(ClipkitError, ValueError):
    """The name is no published model, hub id or existing path."""


class CheckpointError(ClipkitError, RuntimeError):
    """A checkpoint cannot be used."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """The file, folder, repository or hub entry does not exist."""


class CorruptCheckpointError(CheckpointError):
    """The bytes are truncated, fail their checksum, or are no checkpoint."""


class UnsafeCheckpointError(CheckpointError):
    """The pickle refers to code that loading tensors does not need."""


class UnsupportedCheckpointError(CheckpointError):
    """The weights belong to a model that is not a plain CLIP."""


class StateDictMismatchError(CheckpointError):
    """Weights are missing, unexpected or of the wrong shape."""


class DownloadError(ClipkitError, RuntimeError):
    """A download failed or was refused."""


class TokenizerError(ClipkitError, ValueError):
    """A text is too long, or token ids do not fit the model."""


class ImageError(ClipkitError, ValueError):
    """An image cannot be decoded or its values are out of range."""


class DataError(ClipkitError, ValueError):
    """A folder, table or shard of training data cannot be read, or not used as asked."""


class TrainingError(ClipkitError, RuntimeError):
    """Training cannot go on: the loss is no longer finite, or a checkpoint belongs to another run."""


class ExportError(ClipkitError, RuntimeError):
    """The exported file disagrees with the classifier, and was not kept."""
