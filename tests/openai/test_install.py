"""Test that programs which import `clip` run after `install()`, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import clipkit

PATH = str(Path(clipkit.__file__).parents[1])


def run(program: str, *, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a program in a fresh process, where modules in `folder` can be imported too."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([PATH, str(folder)])}
    return subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=False
    )


UNCHANGED = """
import clip
import clip.model
import torch
from clip import clip as inner
from clip import load, tokenize
from clip.clip import _MODELS, _download, _transform, _tokenizer, BICUBIC, available_models
from clip.model import CLIP, LayerNorm, QuickGELU, VisionTransformer, build_model, convert_weights
from clip.simple_tokenizer import SimpleTokenizer as _Tokenizer, default_bpe
from PIL import Image

model, preprocess = clip.load("tiny", device="cpu", jit=False)
image = preprocess(Image.new("RGB", (60, 40), "red")).unsqueeze(0)
text = clip.tokenize(["a diagram", "a dog", "a cat"])
with torch.no_grad():
    logits_per_image, logits_per_text = model(image, text)
print(logits_per_image.shape, inner is clip.clip, isinstance(model, clip.model.CLIP))
print(_Tokenizer().encode("a dog"), clip.__name__)
"""


def test_an_unchanged_program_runs(tmp_path: Path) -> None:
    ended = run(f"import clipkit.openai\nclipkit.openai.install()\n{UNCHANGED}", folder=tmp_path)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [
        "torch.Size([1, 3]) True True",
        "[320, 1929] clipkit.openai",
    ]


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, clipkit.openai as ours\nours.install()\nbefore = dict(sys.modules)\n"
        "ours.install()\nprint(dict(sys.modules) == before, sys.modules['clip'] is ours)"
    )
    assert run(program, folder=tmp_path).stdout == "True True\n"


@pytest.mark.parametrize("name", ["clip", "clip.model"])
def test_another_package_of_that_name_is_left_alone(name: str, tmp_path: Path) -> None:
    other = tmp_path / "clip"
    other.mkdir()
    (other / "__init__.py").write_text("")
    (other / "model.py").write_text("")
    program = (
        f"import sys, {name}, clipkit.openai\nfound = sys.modules['clip']\n"
        "try:\n    clipkit.openai.install()\n"
        "except RuntimeError as error:\n    print(type(error).__name__, error)\n"
        "print(sys.modules['clip'] is found, 'clip.clip' in sys.modules)"
    )
    ended = run(program, folder=tmp_path)
    message, state = ended.stdout.splitlines()
    expected = f"OtherClipError another module 'clip' was imported before, from {other}"
    assert message.startswith(expected)
    assert message.endswith("call clipkit.openai.install() before anything that imports clip")
    assert state == "True False"


def test_the_import_reads_no_vocabulary_and_the_front_door_imports_none_of_it(
    tmp_path: Path,
) -> None:
    program = (
        "import sys, clipkit\nprint('clipkit.openai' in sys.modules)\n"
        "import clipkit.openai as clip\nprint('encoder' in vars(clip.clip._tokenizer))"
    )
    assert run(program, folder=tmp_path).stdout == "False\nFalse\n"


def test_a_pickle_of_openais_modules_is_read_as_ours(tmp_path: Path) -> None:
    """Programs save whole models, whose classes are known by the names of OpenAI's modules."""
    program = (
        "import pickle, sys, clipkit.openai as ours\nours.install()\n"
        "import clip.model\nprint(pickle.loads(b'cclip.model\\nCLIP\\n.') is ours.model.CLIP)"
    )
    assert run(program, folder=tmp_path).stdout == "True\n"
