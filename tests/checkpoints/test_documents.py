"""Read the JSON beside weights, and refuse what is damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipkit.checkpoints.source import resolve
from clipkit.errors import ConfigError, CorruptCheckpointError, UnsupportedCheckpointError
from tests.helpers.repositories import Contents, write


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (b'{"format": "clip', CorruptCheckpointError, r"config\.json is not JSON"),
        (b"\xff\xfe", CorruptCheckpointError, r"config\.json is not text in UTF-8"),
        (b'["clipkit"]', CorruptCheckpointError, r"config\.json must hold a JSON object, not list"),
        (b'{"format": "clipkit"}', ConfigError, "missing"),
        (
            b'{"format": "clipkit", "model": 3}',
            ConfigError,
            "CLIPConfig needs a mapping of its fields, not 3",
        ),
        (
            b'{"vision_config": 3}',
            ConfigError,
            r"config\.json states what no CLIP can be \(AttributeError",
        ),
        (
            b'{"vision_config": {"hidden_size": "768"}}',
            ConfigError,
            r"config\.json states what no CLIP can be",
        ),
        (
            b'{"vision_config": {"hidden_size": 0}}',
            ConfigError,
            r"states what no CLIP can be \(ZeroDivision",
        ),
        (
            b"{}",
            UnsupportedCheckpointError,
            r"config\.json describes .*not a CLIP with both towers",
        ),
    ],
)
def test_broken_json(
    contents: Contents, tmp_path: Path, text: bytes, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resolve(str(write(tmp_path, contents("clipkit") | {"config.json": text})))


@pytest.mark.parametrize(
    "values",
    [
        {"model_cfg": 3},
        {"model_cfg": {"vision_cfg": [1]}},
        {"preprocess_cfg": [0.5]},
        {"model_cfg": {}},
    ],
)
def test_broken_open_clip_json(contents: Contents, tmp_path: Path, values: dict[str, Any]) -> None:
    files = contents("open_clip")
    values = json.loads(files["open_clip_config.json"]) | values
    files["open_clip_config.json"] = json.dumps(values).encode()
    with pytest.raises(
        ConfigError, match=r"open_clip_config\.json (states what no CLIP can be|has no)"
    ):
        resolve(str(write(tmp_path, files)))


@pytest.mark.parametrize("preprocess", [3, "tensor", [0.5], True])
def test_broken_preprocess(contents: Contents, tmp_path: Path, preprocess: Any) -> None:
    files = contents("clipkit")
    values = json.loads(files["config.json"]) | {"preprocess": preprocess}
    files["config.json"] = json.dumps(values).encode()
    with pytest.raises(ConfigError, match=r"config\.json: preprocess must be a JSON object, not"):
        resolve(str(write(tmp_path, files)))
