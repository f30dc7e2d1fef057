"""Time inference side by side with the peers that people pick, on the same random weights.

They are open_clip and transformers, and on a CPU ONNX Runtime and OpenVINO, which run the towers as
`export_tower` writes them.

    PYTHONPATH=. python tests/benchmarks/inference.py
        [--rows image text classifier tokenize preprocess import load start folder]
        [--models ViT-B/32 ViT-B/16 ViT-L/14 RN50] [--batches 1 8 64] [--precisions float32]
        [--seconds 20] [--device cpu] [--full] [--compile] [--quick] [--images DIR] [--json FILE]

Of `--models`, any of `clipkit.list_models()`, only the architecture is taken. A peer that is not
installed is left out. Needs Linux. Cost with the defaults: about an hour on two quiet cores, 10 GB
of memory and as much disk; `--quick` measures nothing, and shows in a minute or two that all of it
runs.

- image: preprocessed batches of 1, 8 and 64 to unit features, in float32 and bfloat16.
- text: 1, 64 and 1,000 prompts, strings to unit features, once for each kind of text tower.
- classifier: 50 of ImageNet's classes, or with `--full` all, in 80 templates each, by the first of
  the models.
- tokenize: 1, 1,000 and 80,000 prompts; where the cache is cold, clipkit alone has forgotten all
  words.
- preprocess: a JPEG of 640 x 480 from its file; 32 of them on two threads. Those who resize by PIL
  have a row of their own, and with them hf-processors-rs, which has PIL's bits from Rust; those who
  resize by torch have another.
- import: whole processes, beside one that imports torch alone, which is no peer.
- load: ViT-B/32 and ViT-L/14 from each library's own files; the same so that no page of a mapped
  file is left to be read; the peak of memory of a process that does it; and beside them, no peer,
  what it costs to fill as much fresh memory, because clipkit copies what others leave in the file.
- start: whole processes, from their start to the label of a photo, with the embedded checkpoint;
  the runtimes in programs without torch.
- folder: JPEGs of the folder `--images` to unit features, decoding included, each in its own way.

clipkit runs as `optimize()` makes it. The first call of each contestant is not counted. Its output
is compared with that of clipkit as loaded, through torch's plainest kernels in float32, and if any
is too far off, the run stops there. Then they take turns, in alternating order, until the row has
had its seconds and 3 rounds at least. In bfloat16 the weights are cast, which is faster than
autocast for all. What would take a peer minutes is timed on a random part and extrapolated in
proportion, marked by ~. `--compile` adds torch.compile to each, for peers also with frozen weights:
for clipkit of the image tower, for peers of both. With `--device cuda`, float16 takes the place of
float32, images come in batches of 1 and 256 and are there already, peers encode 1,024 prompts at
once, nothing is extrapolated, and loading is left out.

Prints medians; ratios of peers to clipkit, with quartiles over the rounds; and the share that
clipkit has of a limit: the operations of its plain route (for text, those of distinct prefixes) at
the rate at which torch's best library multiplies two large matrices, measured right before and
after. They mean little on a busy machine, for which see the load. Rows of an existing `--json` file
are kept or replaced; `report.py` makes a page of it.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from libraries import MISSING, Section, Setting
from model_rows import Plan, rows_of
from other_rows import import_rows, load_rows, preprocess_rows, tokenize_rows
from process_rows import folder_rows, start_rows
from report import ratios, shown
from side_by_side import Row, hardware, run

from clipkit.checkpoints import registry

SECTIONS = (
    "image",
    "text",
    "classifier",
    "tokenize",
    "preprocess",
    "import",
    "load",
    "start",
    "folder",
)
MODELS = ["ViT-B/32", "ViT-B/16", "ViT-L/14", "RN50"]
LOADED = ("ViT-B/32", "ViT-L/14")
FILES = 2000  # of a folder, at most
# How many items a peer does at most, where all of them would take it minutes.
PARTS: dict[str, dict[str, int]] = {
    "text": {"open_clip": 64, "transformers": 256, "onnxruntime": 256, "openvino": 256},
    "classifier": {"open_clip": 2, "transformers": 8, "onnxruntime": 8, "openvino": 8},
}


def sizes_of(section: str, args: argparse.Namespace) -> tuple[int, ...]:
    """Return the numbers of items of a section."""
    quick = {"image": (1, 2), "text": (1, 2), "classifier": (1,), "tokenize": (1, 100)}
    usual = {
        "image": (1, 8, 64) if args.device == "cpu" else (1, 256),
        "text": (1, 64, 1000),
        "classifier": (1000,) if args.full else (50,),
        "tokenize": (1, 1000, 80000),
    }
    if section == "image" and args.batches:
        return tuple(args.batches)
    return quick[section] if args.quick else usual[section]


def models_of(section: str, models: list[str]) -> list[str]:
    """Return the models that a section runs."""
    if section == "classifier":
        return models[:1]
    if section == "load":
        return [name for name in models if name in LOADED]
    if section == "text":  # the first with each kind of text tower
        first = {registry.MODELS[name].config.text: name for name in reversed(models)}
        return list(reversed(first.values()))
    return models


def plan_of(section: Section, args: argparse.Namespace) -> Plan:
    """Return what to measure of a section that runs a model."""
    parts = {} if args.device == "cuda" else PARTS.get(section, {})
    models = models_of(section, args.models)
    return Plan(models, precisions_of(args), sizes_of(section, args), parts)


def precisions_of(args: argparse.Namespace) -> dict[str, torch.dtype]:
    """Return the precisions to measure, by name."""
    usual = ["bfloat16", "float16"] if args.device == "cuda" else ["float32", "bfloat16"]
    chosen: list[str] = args.precisions or usual
    return {name: getattr(torch, name) for name in chosen}


def rows(section: str, setting: Setting, args: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of a section."""
    if section == "tokenize":
        yield from tokenize_rows(setting.root, sizes_of(section, args))
    elif section == "preprocess":
        yield from preprocess_rows(setting.root, count=4 if args.quick else 32)
    elif section == "import":
        yield from import_rows(setting.root)
    elif section == "start":
        yield from start_rows(setting.root)
    elif section == "folder":
        if args.images is not None:
            most = 8 if args.quick else FILES
            yield from folder_rows(setting, args.models[:1], precisions_of(args), args.images, most)
    elif section == "load":
        if args.device == "cpu":  # the memory is measured there
            yield from load_rows(setting.root, models_of(section, args.models))
    else:
        kind: Section = section  # pyright: ignore[reportAssignmentType]
        yield from rows_of(kind, plan_of(kind, args), setting)


def earlier_rows(file: Path | None, about: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Return the rows that a file has already, and refuse one of another machine."""
    if file is None or not file.exists():
        return {}
    if quick:
        raise SystemExit(f"--quick would put rows that measure nothing into {file}: name a new one")
    before = json.loads(file.read_text())
    if before["hardware"] != about:
        raise SystemExit(
            f"{file} was measured with {before['hardware']}, not {about}: name another file"
        )
    return before["rows"]


def show(row: Row, result: dict[str, Any]) -> None:
    """Print a row: every contestant, then the ratios."""
    print()
    for name in result["seconds"]:
        print(f"  {name:32}{shown(result, name)}")
    print(row.name, *ratios(result), flush=True, sep=" | ")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--models", nargs="+", choices=registry.MODELS, default=MODELS, metavar="NAME"
    )
    parser.add_argument("--batches", nargs="+", type=int, help="sizes of batches of images")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=["float32", "bfloat16", "float16"],
        help="those of the device, if not given; name float32 alone where a processor has no other",
    )
    parser.add_argument("--images", type=Path, help="a folder of JPEGs, for the rows of folders")
    parser.add_argument("--seconds", type=float, default=20, help="of each row")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--full", action="store_true", help="all of ImageNet's classes")
    parser.add_argument("--compile", action="store_true", help="torch.compile for all, too")
    parser.add_argument("--quick", action="store_true", help="show that all of it runs")
    return parser.parse_args()


def main() -> None:
    args = read_arguments()
    # The compiled copies share their code, each size is one, and 8 is the default.
    torch._dynamo.config.recompile_limit = 1000
    device = torch.device(args.device)
    for name in MISSING:
        print(f"{name} is not installed and left out")
    about = hardware(device)
    known = earlier_rows(args.json, about, args.quick)
    print(about)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(Path(folder), device, args.compile)
        for section in args.rows:
            for row in rows(section, setting, args):
                result = run(row, 0 if args.quick else args.seconds, device)
                known[row.name] = result
                show(row, result)
                if args.json:  # after each row, so that nothing measured is lost
                    text = json.dumps({"hardware": about, "rows": known}, indent=1)
                    args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
