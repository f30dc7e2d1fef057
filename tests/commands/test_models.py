"""`clipkit models` and `clipkit prompts`: figures that are true, columns that are straight."""

import json
import re
import subprocess
import sys

import pytest

import clipkit
from clipkit.checkpoints.embedded import EMBEDDED
from clipkit.checkpoints.registry import MODELS
from clipkit.cli import main
from clipkit.commands.models import list_rows
from clipkit.models.build import expected_weights
from clipkit.models.count import count_parameters

# Of the same models as open_clip and OpenAI build them.
PUBLISHED = {
    "RN50": 102_007_137,
    "ViT-B/32": 151_277_313,
    "ViT-B/16": 149_620_737,
    "ViT-L/14": 427_616_513,
    "ViT-L/14@336px": 427_944_193,
    "ViT-H-14/laion2b_s32b_b79k": 986_109_441,
    "ViT-g-14/laion2b_s34b_b88k": 1_366_678_273,
    "ViT-bigG-14/laion2b_s39b_b160k": 2_539_567_105,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_models(name: str) -> None:
    assert count_parameters(MODELS[name].config) == PUBLISHED[name]


def test_parameters_are_those_of_a_model_that_is_built() -> None:
    model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    built = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(model.config) == built


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_weights(name: str) -> None:
    config = MODELS[name].config
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    weights = expected_weights(config).items()
    built = sum(value.numel() for key, value in weights if not key.endswith(statistics))
    assert count_parameters(config) == built


@pytest.mark.parametrize("command", ["models", "prompts"])
def test_lists_need_no_torch(command: str) -> None:
    program = "import sys, clipkit.cli as c; c.main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, command], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert len(done.stdout.splitlines()) > 3


def test_json_says_all_of_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == clipkit.list_models()
    tiny, named = rows[0], {row["name"]: row for row in rows}
    assert tiny["bytes"] == (EMBEDDED / "model.safetensors").stat().st_size
    assert tiny["is_estimated"] is False
    assert named["ViT-B/32"] == {
        "name": "ViT-B/32",
        "parameters": 151_277_313,
        "bytes": 4 * 151_277_313,
        "is_estimated": True,
        "resolution": [224, 224],
        "embed_dim": 512,
        "activation": "quick_gelu",
        "license": "MIT",
        "source": "timm/vit_base_patch32_clip_224.openai",
    }
    assert named["ViT-B-32/laion2b_s34b_b79k"]["activation"] == "gelu"


def test_columns_of_every_row_begin_and_end_alike(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list_rows())
    places = {word: header.index(word) for word in ("activation", "license", "source")}
    for line in lines:
        for place in places.values():
            assert line[place - 1] == " "
            assert line[place] != " "
        assert re.match(r"\S+ +[\d,]+ M +~?[\d.]+ [MG]B +\d+ px +\d+  ", line)


def test_every_prompt_set_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["name", "templates", "classes"]
    assert [line.split()[0] for line in lines] == clipkit.prompt_sets()
    assert main(["prompts", "--json"]) == 0
    sets = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert len(sets["imagenet"]["templates"]) == 80
