"""From a folder or a table to a fine-tuned model, and figures on what was held out."""

import re
from pathlib import Path

import numpy as np
import pytest

from clipkit import CLIP, ImageClassifier
from clipkit.classify.evaluate import retrieval, zero_shot
from clipkit.data.labelled import Pairs, read_folder, read_pairs, read_table
from clipkit.errors import ConfigError, DataError
from clipkit.training.run import finetune_from
from tests.helpers.toy_data import caption_table, two_colors
from tests.helpers.training_worker import rows_of_log

GRAY = (9, 9, 9)


def test_pairs_are_found_in_class_folders_and_tables_beside_the_images(place: Path) -> None:
    pairs = read_pairs(place / "images", ("{}!",))
    assert pairs.class_names == ["blue", "dark_red", "green", "white"]
    assert pairs.captions[0] == ["blue!"]
    table = caption_table(place / "captioned")
    for data in (table, place / "captioned"):
        pairs = read_pairs(data)
        assert len(pairs) == 16
        assert pairs.class_names is None
        assert pairs.files[0].parent == place / "captioned"
    with pytest.raises(DataError, match="no file or folder .*nowhere"):
        read_pairs(place / "nowhere")


def test_figures_are_those_of_the_held_out_share(place: Path, model: CLIP) -> None:
    figures = finetune_from(
        read_pairs(place / "images"), place / "run", model, held_out=0.25, head_only=True, alpha=1.0
    )
    held = read_folder(place / "images").split(6)[1]
    before, after = figures["accuracy"]
    assert before == zero_shot(model, held).figures["accuracy"]
    assert 0 <= before < after <= 1
    classifier = ImageClassifier.load(place / "run", device="cpu")
    labels = [prediction.label for prediction in classifier.predict(held.files)]
    names = held.class_names or []
    expected = [names[label] for label in held.labels or []]
    assert after == pytest.approx(np.mean(np.array(labels) == np.array(expected)))


def test_captions_are_tuned_and_measured(tmp_path: Path, model: CLIP) -> None:
    caption_table(tmp_path / "data", each=2)
    figures = finetune_from(
        read_pairs(tmp_path / "data"),
        tmp_path / "run",
        model,
        held_out=0.5,
        epochs=1,
        batch_size=8,
        alpha=0,
    )
    assert list(figures) == [
        "image to text R@1",
        "image to text R@5",
        "text to image R@1",
        "text to image R@5",
    ]
    assert all(before == after for before, after in figures.values())  # with alpha 0
    assert figures["image to text R@5"][0] >= figures["image to text R@1"][0]
    assert rows_of_log(tmp_path / "run" / "run")[-1]["step"] == 2


@pytest.mark.parametrize("held_out", [0, 0.01, 0.99, 1.0, 1.5, -0.1, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(place: Path, model: CLIP, held_out: float) -> None:
    with pytest.raises(DataError, match=re.escape(f"is {held_out} of 24")):
        finetune_from(read_pairs(place / "images"), place / "run", model, held_out=held_out)


@pytest.mark.parametrize("option", ["head_only", "blocks"])
def test_options_of_classes_are_refused_for_captions(
    option: str, tmp_path: Path, model: CLIP
) -> None:
    table = caption_table(tmp_path / "data")
    options = {"head_only": True, "blocks": None}
    if option == "blocks":
        options = {"head_only": False, "blocks": 1}
    with pytest.raises(ConfigError, match=f"{option} is for class folders"):
        finetune_from(
            read_pairs(table),
            tmp_path / "run",
            model,
            held_out=0.25,
            head_only=bool(options["head_only"]),
            blocks=options["blocks"],
        )
    assert not (tmp_path / "run").exists()


# Broken images


def break_first(pairs: Pairs) -> Path:
    """Overwrite the first image with what is no image."""
    pairs.files[0].write_bytes(b"broken")
    return pairs.files[0]


def test_a_broken_held_out_image_is_skipped_and_named(
    place: Path, model: CLIP, capsys: pytest.CaptureFixture[str]
) -> None:
    held = read_folder(place / "images").split(6)[1]
    broken = break_first(held)
    figures = finetune_from(
        read_pairs(place / "images"), place / "run", model, held_out=0.25, head_only=True, alpha=0.5
    )
    rest = held.select(range(1, 6))
    assert figures["accuracy"][0] == zero_shot(model, rest).figures["accuracy"]
    told = capsys.readouterr().err
    assert broken.name in told
    assert told.count("skipped: ") == 1


def test_a_broken_held_out_image_with_a_caption_is_skipped_and_named(
    tmp_path: Path, model: CLIP, capsys: pytest.CaptureFixture[str]
) -> None:
    table = caption_table(tmp_path / "data")
    held = read_table(table).split(4)[1]
    broken = break_first(held)
    figures = finetune_from(
        read_pairs(table), tmp_path / "run", model, held_out=0.25, epochs=1, batch_size=12, alpha=0
    )
    expected = retrieval(model, held.select(range(1, 4))).figures
    assert {name: before for name, (before, _) in figures.items()} == expected
    told = capsys.readouterr().err
    assert broken.name in told
    assert told.count("skipped: ") == 1


def test_nothing_to_measure_on_is_found_before_the_training(tmp_path: Path, model: CLIP) -> None:
    table = caption_table(tmp_path / "data")
    for file in read_table(table).split(4)[1].files:
        file.write_bytes(b"broken")
    with pytest.raises(DataError, match="none of 4 images can be read"):
        finetune_from(read_pairs(table), tmp_path / "run", model, held_out=0.25)
    assert not (tmp_path / "run").exists()


def test_a_broken_training_image_is_skipped_and_counted(tmp_path: Path, model: CLIP) -> None:
    table = caption_table(tmp_path / "data")
    break_first(read_table(table).split(4)[0])
    finetune_from(
        read_pairs(table), tmp_path / "run", model, held_out=0.25, epochs=1, batch_size=12
    )
    assert rows_of_log(tmp_path / "run" / "run")[-1]["skipped"] == 1


def test_a_broken_image_of_a_class_is_skipped_too(place: Path, model: CLIP) -> None:
    break_first(read_folder(place / "images").split(6)[0])
    figures = finetune_from(
        read_pairs(place / "images"), place / "run", model, held_out=0.25, epochs=1, batch_size=18
    )
    assert list(figures) == ["accuracy"]
    assert rows_of_log(place / "run" / "run")[-1]["skipped"] == 1
    classifier = ImageClassifier.load(place / "run", device="cpu")
    assert sum(classifier.provenance["counts"]) == 17


def test_images_of_any_shape_are_trained_on(tmp_path: Path, model: CLIP) -> None:
    table = caption_table(tmp_path)
    files = read_table(table).files
    for number, size in enumerate([(1, 1), (3, 200), (90, 2)]):
        two_colors(GRAY, GRAY, seed=number, size=size).save(files[number])
    finetune_from(
        read_pairs(table), tmp_path / "run", model, held_out=0.25, epochs=1, batch_size=12
    )
    assert (tmp_path / "run" / "model").is_dir()
