"""The tree of errors that clipkit raises on bad input.

Each error is also the builtin that a caller would catch.

ClipkitError
├── ConfigError (ValueError)              a configuration contradicts itself or its weights
├── UnknownModelError (ValueError, RuntimeError)      no such model; close names are suggested
├── CheckpointError (RuntimeError)        a checkpoint cannot be used
│   ├── CheckpointNotFoundError (FileNotFoundError)   no such file, folder, repository or hub entry
│   ├── CorruptCheckpointError            truncated, wrong checksum, not a checkpoint at all
│   ├── UnsafeCheckpointError             a pickle asks for more than tensors
│   ├── UnsupportedCheckpointError        the weights are of a model that is not a plain CLIP
│   └── StateDictMismatchError            missing, unexpected or wrong-shaped weights, as a diff
├── DownloadError (RuntimeError)          the network failed; the message says how to go on offline
├── UploadError (RuntimeError)            the hub took nothing; the message says what it wants
├── TokenizerError (ValueError, RuntimeError)         a text or token ids cannot be used
├── ImageError (ValueError)               an image cannot be read or its values are out of range
├── DataError (ValueError)                a data set cannot be read or used
├── TrainingError (RuntimeError)          training cannot go on
├── OutputError (OSError)                 a file or folder cannot be written
├── MovedNameError (AttributeError)       a name of OpenAI's package that is elsewhere here
└── ExportError (RuntimeError)            an export does not compute what the model does

OpenAI's `clip` package raises RuntimeError for an unknown model and for a text that is too long.
The two errors that take their place are RuntimeErrors, so that programs written for it work.

Example:
    >>> from clipkit.errors import ClipkitError
    >>> from clipkit.tokenizer import tokenize
    >>> try:
    ...     tokenize("dog " * 100)
    ... except ClipkitError as error:
    ...     print(type(error).__name__)
    TokenizerError
"""


class ClipkitError(Exception):
    """Stand at the root of every error that clipkit raises on purpose.

    Example:
        try:
            model, preprocess = clipkit.load("ViT-B/33")
        except clipkit.ClipkitError as error:
            print(error)  # names that are close
    """


class ConfigError(ClipkitError, ValueError):
    """Report a configuration value that is impossible, missing, or contradicts the weights."""


class UnknownModelError(ClipkitError, ValueError, RuntimeError):
    """Report a name that is no published model, hub id or existing path."""


class CheckpointError(ClipkitError, RuntimeError):
    """Report a checkpoint that cannot be used."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """Report a file, folder, repository or hub entry that does not exist."""


class CorruptCheckpointError(CheckpointError):
    """Report bytes that are truncated, fail their checksum, or are no checkpoint."""


class UnsafeCheckpointError(CheckpointError):
    """Report a pickle that refers to code that loading tensors does not need."""


class UnsupportedCheckpointError(CheckpointError):
    """Report weights that belong to a model that is not a plain CLIP."""


class StateDictMismatchError(CheckpointError):
    """Report weights that are missing, unexpected or of the wrong shape."""


class DownloadError(ClipkitError, RuntimeError):
    """Report a download that failed or was refused."""


class UploadError(ClipkitError, RuntimeError):
    """Report an upload that failed or was refused."""


class TokenizerError(ClipkitError, ValueError, RuntimeError):
    """Report a text that is too long, or token ids that do not fit the model."""


class ImageError(ClipkitError, ValueError):
    """Report an image that cannot be decoded, or values of an image that are out of range."""


class DataError(ClipkitError, ValueError):
    """Report a folder, table or shard of data that cannot be read, or not be used as asked."""


class TrainingError(ClipkitError, RuntimeError):
    """Report training that cannot go on, as with a loss that is no longer finite."""


class OutputError(ClipkitError, OSError):
    """Report a file or folder that cannot be written. `errno` is the system's, if it had one."""


class MovedNameError(ClipkitError, AttributeError):
    """Report a name of OpenAI's package that clipkit has elsewhere. The message says where."""


class ExportError(ClipkitError, RuntimeError):
    """Report a file or a runtime that does not compute what the model does. No file is kept."""
