"""`clipkit models` and `clipkit prompts`: list what can be named."""

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass

from clipkit import CLIPConfig, prompt_set, prompt_sets
from clipkit.checkpoints.embedded import embedded_bytes, embedded_config
from clipkit.checkpoints.registry import MODELS
from clipkit.columns import align, width_of
from clipkit.commands.command import DONE, Command, add_json
from clipkit.commands.display import Style, tell
from clipkit.models.count import count_parameters
from clipkit.plurals import size_in_words


@dataclass(frozen=True)
class Row:
    """Hold what is told of a model.

    Attributes:
        name: as `--model` takes it.
        parameters: how many numbers the model learned.
        bytes: of the weights on disk or to download.
        is_estimated: whether `bytes` is four for each parameter, as published files mostly have.
        resolution: height and width of the input, in pixels.
        embed_dim: width of the features.
        activation: of the text tower, and of an image tower that is a transformer.
        license: of the weights.
        source: where they are.
    """

    name: str
    parameters: int
    bytes: int
    is_estimated: bool
    resolution: tuple[int, int]
    embed_dim: int
    activation: str
    license: str
    source: str

    @classmethod
    def of(cls, name: str, config: CLIPConfig, bytes: int, license: str, source: str) -> "Row":
        """Return the row of a model. `bytes` is 0 if that is not known."""
        parameters = count_parameters(config)
        return cls(
            name=name,
            parameters=parameters,
            bytes=bytes or 4 * parameters,
            is_estimated=bytes == 0,
            resolution=config.vision.resolution,
            embed_dim=config.embed_dim,
            activation=config.text.activation,
            license=license,
            source=source,
        )

    def cells(self) -> list[str]:
        """Return the row in words."""
        return [
            self.name,
            f"{self.parameters / 1e6:,.0f} M",
            f"{'~' if self.is_estimated else ''}{size_in_words(self.bytes)}",
            f"{self.resolution[0]} px",
            str(self.embed_dim),
            self.activation,
            self.license,
            self.source,
        ]


HEADER = ["name", "parameters", "download", "input", "width", "activation", "license", "source"]
_NUMBERS = (1, 2, 3, 4)  # columns that stand to the right


def _add_models_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser, help="print a JSON list")


def models(*, as_json: bool) -> int:
    """Print a table of the embedded checkpoint and the published ones."""
    rows = list_rows()
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return DONE
    _print_table([HEADER, *(row.cells() for row in rows)], right=_NUMBERS)
    if Style.of(sys.stdout).for_people:
        tell("~ is four bytes for each parameter. Load one by --model NAME, or clipkit.load(NAME).")
    return DONE


def list_rows() -> list[Row]:
    """Return the embedded checkpoint and the published ones, in the order of `list_models`."""
    rows = [Row.of("tiny", embedded_config(), embedded_bytes(), "MIT", "embedded in clipkit")]
    for model in MODELS.values():
        rows.append(Row.of(model.name, model.config, 0, model.license, model.hub))
    return rows


def _print_table(rows: list[list[str]], right: tuple[int, ...]) -> None:
    """Print a table with a header, and on a terminal no more columns than it has place for."""
    style = Style.of(sys.stdout)
    header, *lines = align(rows, right=right)
    columns = len(header)
    if style.for_people:
        width = shutil.get_terminal_size().columns
        while columns > 1 and width_of("  ".join(header[:columns])) > width:
            columns -= 1
    print(style.bold("  ".join(header[:columns]).rstrip()))
    for name, *others in lines:
        print("  ".join([style.name(name), *others[: columns - 1]]).rstrip())


def _add_prompts_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser, help="print a JSON list, with all templates and class names")


def prompts(*, as_json: bool) -> int:
    """Print the prompt sets that --templates takes by name."""
    sets = [prompt_set(name) for name in prompt_sets()]
    if as_json:
        print(json.dumps([asdict(one) for one in sets], indent=1))
        return DONE
    _print_table(
        [
            ["name", "templates", "classes", "the first template"],
            *(
                [one.name, str(len(one.templates)), str(len(one.class_names)), one.templates[0]]
                for one in sets
            ),
        ],
        right=(1, 2),
    )
    return DONE


MODELS_COMMAND = Command(
    name="models",
    examples="clipkit models\nclipkit models --json",
    add_arguments=_add_models_arguments,
    run=models,
)
PROMPTS = Command(
    name="prompts",
    examples="clipkit prompts",
    add_arguments=_add_prompts_arguments,
    run=prompts,
)
