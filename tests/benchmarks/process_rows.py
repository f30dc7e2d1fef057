"""Rows of `inference.py` for whole programs: to the first label, and from a folder to features."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from libraries import INSTALLED, Library, Setting, is_resnet, load, open_clip, transformers, weights
from model_rows import distance, limit_of
from other_rows import processed
from PIL import Image
from runtimes import RUNTIMES, runtime_calls, unit
from side_by_side import IN_OPENVINO, Call, Row, with_bytecode_in
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import clipkit
from clipkit.checkpoints.tokenizer_json import to_tokenizer_json
from clipkit.data.folders import list_images
from clipkit.threads import reading_ahead

LABELS = ("a cat", "a dog", "a cup of coffee", "a rocket")
PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "coffee.jpg"
BATCH = 32

# A program of open_clip. Its arguments: a folder of weights, a photo, a JSON list of labels.
OPEN_CLIP_PROGRAM = """
import json, sys
import open_clip, torch
from PIL import Image
name = f"local-dir:{sys.argv[1]}"
model, _, preprocess = open_clip.create_model_and_transforms(name)
labels = json.loads(sys.argv[3])
with torch.inference_mode():
    image = model.eval().encode_image(preprocess(Image.open(sys.argv[2])).unsqueeze(0))
    text = model.encode_text(open_clip.tokenize(labels))
image, text = (torch.nn.functional.normalize(one, dim=-1) for one in (image, text))
print(labels[int((image @ text.T).argmax())])
"""

# Programs of the runtimes, without torch. Their arguments: a folder with both towers as ONNX, a
# photo, a JSON list of labels.
RUNTIME_PROGRAM = """
import json, sys
import numpy as np
from PIL import Image
from tokenizers import Tokenizer
{runtime}
about = json.load(open(f"{{sys.argv[1]}}/about.json"))
labels = json.loads(sys.argv[3])
side = about["side"]
photo = Image.open(sys.argv[2]).convert("RGB")
scale = side / min(photo.size)
width, height = (max(side, round(scale * each)) for each in photo.size)
photo = photo.resize((width, height), Image.Resampling.BICUBIC)
left, top = (width - side) // 2, (height - side) // 2
pixels = np.asarray(photo.crop((left, top, left + side, top + side)), np.float32) / 255
pixels = (pixels - np.float32(about["mean"])) / np.float32(about["std"])
tokenizer = Tokenizer.from_file(f"{{sys.argv[1]}}/tokenizer.json")
tokenizer.enable_padding()
tokens = np.array([one.ids for one in tokenizer.encode_batch(labels)], np.int64)
image = run("image", np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
text = run("text", tokens)
cosines = text @ image[0] / np.linalg.norm(text, axis=1)
print(labels[int(cosines.argmax())])
"""
RUNTIME_PARTS = {
    "onnxruntime": """
import onnxruntime
def run(tower, values):
    file = f"{sys.argv[1]}/{tower}.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: values})[0]
""",
    "openvino": """
import openvino
def run(tower, values):
    return openvino.compile_model(f"{sys.argv[1]}/{tower}.onnx", "CPU")([values])[0]
""",
}


def start_rows(root: Path) -> Iterator[Row]:
    """Yield a row of whole processes, from their start to the label of a photo."""
    model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    folder = root / "tiny"
    model.save_pretrained(folder, layout="open_clip")
    write_towers(model, folder)
    arguments = [str(folder), str(PHOTO), json.dumps(LABELS)]
    programs = {"clipkit": [*"-m clipkit classify".split(), str(PHOTO), "--labels", *LABELS]}
    programs["clipkit"] += "--templates {} --device cpu --top 1 --json".split()
    if open_clip:
        programs["open_clip"] = ["-c", OPEN_CLIP_PROGRAM, *arguments]
    for name in RUNTIMES:
        code = RUNTIME_PROGRAM.format(runtime=RUNTIME_PARTS[name])
        programs[name] = ["-c", code, *arguments]
    env = with_bytecode_in(root)
    calls: dict[str, Call] = {name: partial(output_of, own, env) for name, own in programs.items()}
    yield Row("start: a process to the first label, tiny", calls, is_wrong)


def write_towers(model: clipkit.CLIP, folder: Path) -> None:
    """Write both towers as ONNX, and what a program needs to know of them."""
    model.export_tower(folder / "image.onnx")
    model.export_tower(folder / "text.onnx", tower="text")
    config = model.config
    about = {
        "side": config.vision.resolution[0],
        "mean": config.preprocess.mean,
        "std": config.preprocess.std,
    }
    (folder / "about.json").write_text(json.dumps(about))
    tokenizer = json.dumps(to_tokenizer_json(model.tokenizer))
    (folder / "tokenizer.json").write_text(tokenizer)


def output_of(arguments: list[str], env: dict[str, str]) -> str:
    """Return what a program prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


def is_wrong(printed: str) -> float:
    """Return 0 if the label is right, else 1."""
    return float("a cup of coffee" not in printed)


class Prepared(Dataset[Tensor]):
    """Hold files as a peer prepares them."""

    def __init__(self, files: Sequence[Path], prepare: Callable[[Path], Tensor]) -> None:
        self.files = files
        self.prepare = prepare

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        """Return a prepared image, (3, H, W)."""
        return self.prepare(self.files[index])


def folder_rows(
    setting: Setting, names: list[str], dtypes: dict[str, torch.dtype], folder: Path, most: int
) -> Iterator[Row]:
    """Yield rows from the JPEGs of a folder to unit features, decoding included.

    Each library loads in its own way: clipkit by `embed_images`, open_clip and transformers by a
    DataLoader with two processes, and the runtimes by threads, as rclip does it.
    """
    files = list_images(folder)[:most]
    for name in names:
        for precision, dtype in dtypes.items():
            calls = ways_of(name, dtype, files, setting)
            exact = load("clipkit", weights(setting.root, name), setting.device)
            expected = clipkit.embed_images(exact, files[:8])
            row = Row(
                f"folder: {name}, {precision}, {len(files):,} JPEGs",
                calls,
                partial(distance, expected=expected, exact=dtype is torch.float32),
                "images",
                len(files),
            )
            row.dtype, row.limit = dtype, limit_of(name, dtype)
            row.limits = {"transformers": max(row.limit, 2e-3)}  # torch resizes its images
            yield row


def ways_of(
    name: str, dtype: torch.dtype, files: Sequence[Path], setting: Setting
) -> dict[str, Call]:
    """Return what each library does with files."""
    folder = weights(setting.root, name)
    model = load("clipkit", folder, setting.device, dtype)
    fast = model.optimize()
    calls: dict[str, Call] = {"clipkit": partial(clipkit.embed_images, fast, files)}
    if "openvino" in RUNTIMES:
        in_openvino = model.optimize(runtime="openvino")
        calls[IN_OPENVINO] = partial(clipkit.embed_images, in_openvino, files)
    for peer in INSTALLED:
        if not (is_resnet(name) and peer == "transformers"):
            calls[peer] = peer_way(peer, name, dtype, files, setting)
    exact = load("clipkit", folder, setting.device)
    for title, call in runtime_calls(exact, "image", dtype, Path(folder)).items():
        calls[title] = partial(by_threads, call, model.preprocess, files)
    return calls


def peer_way(
    peer: Library, name: str, dtype: torch.dtype, files: Sequence[Path], setting: Setting
) -> Call:
    """Return what a library of torch does with files."""
    theirs = load(peer, weights(setting.root, name, peer), setting.device, dtype)
    if peer == "open_clip":
        transform = open_clip.image_transform(theirs.visual.image_size, is_train=False)
        prepare = partial(opened, transform)
        encode = theirs.encode_image
    else:
        processor = transformers.CLIPImageProcessor()
        prepare = partial(processed, processor)

        def encode(images: Tensor) -> Tensor:
            return theirs.get_image_features(images).pooler_output

    def work() -> Tensor:
        loader = DataLoader(Prepared(files, prepare), batch_size=BATCH, num_workers=2)
        with torch.inference_mode():
            parts = [F.normalize(encode(images.to(dtype)).float(), dim=-1) for images in loader]
        return torch.cat(parts)

    return work


def opened(transform: Callable[[Image.Image], Tensor], file: Path) -> Tensor:
    """Return a file as open_clip prepares it."""
    return transform(Image.open(file))


def by_threads(
    call: Callable[[Tensor], Tensor], prepare: Callable[[Path], Tensor], files: Sequence[Path]
) -> Tensor:
    """Encode files in batches, while threads prepare the next."""
    parts: list[Tensor] = []
    with reading_ahead(torch.get_num_threads(), prepare, files) as images:
        while batch := list(islice(images, BATCH)):
            parts.append(unit(call, torch.stack(batch)))
    return torch.cat(parts)
