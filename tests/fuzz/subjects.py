"""What is damaged: every kind of file that clipkit reads, how it is made, and what reads it."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import clipkit
from clipkit import ImageClassifier, extract_features, load_features, read_table
from clipkit.checkpoints.weights import read_weights
from clipkit.encode.features import Features
from clipkit.training.run import RunConfig
from tests.helpers import model_files, training_worker, weight_files
from tests.helpers.models import RESNET, VIT, make_small_tokenizer, random_clip
from tests.helpers.toy_classifier import toy_features, toy_model
from tests.helpers.toy_data import two_colors

_IMAGE_SUFFIXES = "png jpg webp bmp tiff gif pgm tga jp2 ico avif jfif ppm".split()


@dataclass(frozen=True)
class Subject:
    """Hold a kind of file.

    Attributes:
        name: for the report.
        make: writes sound files into an empty folder.
        read: reads what may be damaged in the folder. It fails with an AssertionError for a result
            that is wrong.
        writes: whether reading goes on to write, as a run that is resumed does.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    writes: bool = False


# Checkpoints


def _layout(write: model_files.Write, config: clipkit.CLIPConfig) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write(random_clip(config), folder)

    return make


def _load_folder(folder: Path) -> object:
    return clipkit.load(folder, device="cpu")


def _saved(layout: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        random_clip(VIT, make_small_tokenizer()).save_pretrained(folder, layout=layout)

    return make


def _bare(legacy: bool) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        state = random_clip(VIT).state_dict()
        torch.save(state, folder / "bare.pt", _use_new_zipfile_serialization=not legacy)

    return make


def _load_bare(folder: Path) -> object:
    return clipkit.load(folder / "bare.pt", config=VIT, device="cpu")


def _wrapped(folder: Path) -> None:
    state = {f"module.clip.{name}": value for name, value in random_clip(VIT).state_dict().items()}
    content = {
        "epoch": 3,
        "accuracy": np.float64(0.5),
        "net": {**state, "head.weight": torch.ones(3, 2)},
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"betas": (0.9, 0.98)}]},
    }
    torch.save(content, folder / "bare.pt")


# Images


def _images(folder: Path) -> None:
    for suffix in _IMAGE_SUFFIXES:
        image = two_colors((200, 10, 30), (0, 90, 250), seed=1, size=(40, 30))
        image.save(folder / f"image.{suffix}")
    Image.new("RGBA", (20, 30), (9, 8, 7, 100)).save(folder / "alpha.png")
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(folder / "deep.png")


def _read_image(folder: Path) -> None:
    for path in folder.iterdir():  # one is left
        pixels = clipkit.Preprocess((48, 48), VIT.preprocess)(path)
        assert pixels.shape == (3, 48, 48)
        assert pixels.isfinite().all()


# Tables and run files


def _table(folder: Path) -> None:
    rows = [("a.png", "a cat, sleeping"), ("b.png", "two dogs"), ("c.png", "猫")]
    for suffix, comma in (("csv", ","), ("tsv", "\t")):
        lines = ["path" + comma + "caption", *(f'{path}{comma}"{text}"' for path, text in rows)]
        (folder / f"captions.{suffix}").write_text("\n".join(lines), "utf-8")
    lines = [json.dumps({"path": path, "captions": [text, text]}) for path, text in rows]
    (folder / "captions.jsonl").write_text("\n".join(lines), "utf-8")


def _read_tables(folder: Path) -> None:
    for path in folder.iterdir():  # one is left
        pairs = read_table(path)
        assert len(pairs.files) == len(pairs.captions)


def _run_file(folder: Path) -> None:
    values: dict[str, Any] = {
        "data": "captions.csv",
        "out": "run",
        "batch_size": 8,
        "init": "tiny",
        "workers": 0,
        "train": {"steps": 100, "lr": 1e-3, "warm_up": 10, "betas": [0.9, 0.98], "shard": False},
        "augment": {"area": 0.5, "mirror": True},
        "templates": ["a photo of a {}."],
        "evaluate": None,
    }
    model_files.write_json(folder / "run.json", values)


def _read_run_file(folder: Path) -> object:
    return RunConfig.read(folder / "run.json")


# Our own files


def _classifier(method: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        model = toy_model(make_small_tokenizer())
        names = {"blue": ["blue", "navy"], "red": "red", "green": "green", "white": "white"}
        classifier = ImageClassifier.zero_shot(model, names, ["a {}."])
        if method != "zero_shot":
            classifier.fit(*toy_features(), method)  # pyright: ignore[reportArgumentType]
        classifier.save(folder)

    return make


def _read_classifier(folder: Path) -> None:
    classifier = ImageClassifier.load(folder, device="cpu")
    probabilities = classifier.probabilities(toy_features()[0])
    assert probabilities.shape == (22, len(classifier.labels))


def _extract(folder: Path) -> Features:
    images = [(two_colors((0, 0, 90), (90, 0, 0), number), number) for number in range(4)]
    model = toy_model(make_small_tokenizer())
    return extract_features(model, images, out=folder / "features.safetensors")


def _feature_file(folder: Path) -> None:
    _extract(folder)


def _read_features(folder: Path) -> None:
    for found in (load_features(folder / "features.safetensors"), _extract(folder)):
        assert found.features.ndim == 2
        assert found.features.dtype == torch.float32
        assert len(found.paths) == len(found.features)
        assert found.labels is not None
        assert len(found.labels) == len(found.features)


def _training(folder: Path) -> None:
    training_worker.run(folder, steps=2)


def _resume(folder: Path) -> object:
    return training_worker.run(folder, steps=3)


SUBJECTS = (
    *(
        Subject(f"{write.__name__[6:]}", _layout(write, VIT), _load_folder)
        for write in (*model_files.FOR_ALL, *model_files.FOR_VIT)
    ),
    Subject("resnet", _layout(model_files.write_clipkit, RESNET), _load_folder),
    Subject("saved folder", _saved("clipkit"), _load_folder),
    Subject("saved for transformers", _saved("transformers"), _load_folder),
    Subject("bare zip", _bare(legacy=False), _load_bare),
    Subject("bare legacy", _bare(legacy=True), _load_bare),
    Subject("wrapped", _wrapped, _load_bare),
    Subject(
        "TorchScript",
        lambda folder: weight_files.save_archive(folder / "clip.pt"),
        lambda folder: read_weights(folder / "clip.pt"),
    ),
    Subject("image", _images, _read_image),
    Subject("table", _table, _read_tables),
    Subject("run file", _run_file, _read_run_file),
    Subject("classifier", _classifier("anchored"), _read_classifier),
    Subject("zero-shot classifier", _classifier("zero_shot"), _read_classifier),
    Subject("cache classifier", _classifier("cache"), _read_classifier),
    Subject("feature file", _feature_file, _read_features),
    Subject("training", _training, _resume, writes=True),
)
BY_NAME = {subject.name: subject for subject in SUBJECTS}
# Of these one file is damaged and read, and the others are left out.
ONE_OF_MANY = ("image", "table")


@functools.cache
def sound_files(name: str, scratch: Path) -> dict[str, bytes]:
    """Return the sound files of a subject by their names; made once in a folder `scratch`."""
    folder = scratch / name
    folder.mkdir(parents=True)
    BY_NAME[name].make(folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
