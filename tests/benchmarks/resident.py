"""Measure the memory of a process that loads a model and classifies one image, library by library.

    PYTHONPATH=. python tests/benchmarks/resident.py [--model ViT-B/32] [--json FILE]

Each library loads the same random weights from its own files in a process of its own, and maps an
image and three texts to features. ONNX Runtime and OpenVINO run both towers from ONNX. What is
resident (VmRSS) afterwards is compared with a process that has only imported torch, for the
runtimes with one that has imported NumPy, and with the weights' bytes.

Needs Linux. Cost: two minutes and 3 GB of disk with ViT-B/32.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from libraries import INSTALLED, Library, weights
from runtimes import RUNTIMES
from side_by_side import hardware

import clipkit
from clipkit.checkpoints import registry

# What each program ends with. Its argument is a folder.
TOLD = """
lines = open("/proc/self/status").read().splitlines()
print([int(line.split()[1]) for line in lines if line.startswith("VmRSS:")][0])
"""
TEXTS = 'texts = ["a cat", "a dog", "a cup of coffee"]\n'
PROGRAMS = {
    "torch alone": "import torch\n",
    "NumPy alone": "import numpy\n",
    "clipkit": """
import clipkit, torch
model = clipkit.CLIP.from_pretrained(folder, device="cpu")
with torch.inference_mode():
    model(torch.zeros(1, 3, *model.config.vision.resolution), model.tokenizer(texts))
""",
    "clipkit, optimize()": """
import clipkit, torch
model = clipkit.CLIP.from_pretrained(folder, device="cpu").optimize()
with torch.inference_mode():
    model(torch.zeros(1, 3, *model.config.vision.resolution), model.tokenizer(texts))
""",
    "clipkit, optimize(int8=True)": """
import clipkit, torch
model = clipkit.CLIP.from_pretrained(folder, device="cpu").optimize(int8=True)
with torch.inference_mode():
    model(torch.zeros(1, 3, *model.config.vision.resolution), model.tokenizer(texts))
""",
    "open_clip": """
import open_clip, torch
model = open_clip.create_model(f"local-dir:{folder}").eval()
with torch.inference_mode():
    model(torch.zeros(1, 3, 224, 224), open_clip.tokenize(texts))
""",
    "transformers": """
import torch, transformers
model = transformers.CLIPModel.from_pretrained(folder).eval()
tokenize = transformers.CLIPTokenizer.from_pretrained(folder)
with torch.inference_mode():
    ids = tokenize(texts, padding=True, return_tensors="pt")
    model(pixel_values=torch.zeros(1, 3, 224, 224), **ids)
""",
    "onnxruntime": """
import numpy as np, onnxruntime
inputs = {"image": np.zeros((1, 3, 224, 224), np.float32), "text": np.ones((3, 8), np.int64)}
kept = []
for tower, values in inputs.items():
    session = onnxruntime.InferenceSession(f"{folder}/{tower}.onnx")
    session.run(None, {session.get_inputs()[0].name: values})
    kept.append(session)
""",
    "openvino": """
import numpy as np, openvino
inputs = {"image": np.zeros((1, 3, 224, 224), np.float32), "text": np.ones((3, 8), np.int64)}
kept = []
for tower, values in inputs.items():
    compiled = openvino.compile_model(f"{folder}/{tower}.onnx", "CPU")
    compiled([values])
    kept.append(compiled)
""",
}


def resident_of(program: str, folder: str) -> float:
    """Return the MB that a program has resident at its end."""
    code = "import sys\nfolder = sys.argv[1]\n" + TEXTS + program + TOLD
    command = [sys.executable, "-c", code, folder]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(ended.stdout.split()[-1]) * 1024 / 1e6


def folder_of(program: str, root: Path, name: str) -> str:
    """Return the folder that a program reads."""
    library = program.partition(",")[0]
    layouts: dict[str, Library] = {"open_clip": "open_clip", "transformers": "transformers"}
    return weights(root, name, layouts.get(library, "open_clip"))


def measured(root: Path, name: str) -> dict[str, float]:
    """Return the MB of each program whose library is installed."""
    model = clipkit.CLIP.from_pretrained(weights(root, name), device="cpu")
    if RUNTIMES:
        for tower in ("image", "text"):
            model.export_tower(Path(weights(root, name)) / f"{tower}.onnx", tower=tower)
    megabytes = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
    del model
    peers = {"open_clip", "transformers", "onnxruntime", "openvino"}
    missing = peers - {*INSTALLED, *RUNTIMES}
    found = {"weights": megabytes}
    for program, code in PROGRAMS.items():
        if program not in missing:
            found[program] = resident_of(code, folder_of(program, root, name))
    return found


def line_of(program: str, found: dict[str, float]) -> str:
    """Return a line on one program."""
    line = f"{program:24}{found[program]:8.0f} MB"
    if program == "weights" or "alone" in program:
        return line
    base = "NumPy alone" if program in RUNTIMES else "torch alone"
    share = (found[program] - found[base]) / found["weights"]
    return f"{line}, {share:.2f} x the weights over {base}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B/32", choices=registry.MODELS, metavar="NAME")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), args.model)
    for program in found:
        print(line_of(program, found))
    if args.json:
        about = {"hardware": hardware(torch.device("cpu")), "model": args.model, "MB": found}
        args.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
