"""Write the cards that the hub shows of a repository: front matter in YAML, then Markdown."""

import re
from collections.abc import Sequence
from typing import Any

from clipkit.config import CLIPConfig, ViTConfig
from clipkit.models.build import expected_weights

PACKAGE = "clipkit-torch"  # by which pip knows clipkit


def card(
    repo_id: str,
    *,
    task: str,
    tags: Sequence[str],
    library: str,
    license: str | None,
    base_model: str | None,
    body: Sequence[str],
) -> str:
    """Return a card.

    Args:
        repo_id: its name is the title.
        task: as the hub calls it (`pipeline_tag`).
        tags: by which it is found.
        library: by which the files can be loaded, besides clipkit.
        license: as the hub calls it, such as "mit"; left out if not given.
        base_model: the hub id of what this was made from; left out if not known.
        body: paragraphs.
    """
    from huggingface_hub import ModelCardData

    data: Any = ModelCardData(
        library_name=library,
        pipeline_tag=task,
        tags=list(tags),
        license=license,
        base_model=base_model,
    )
    title = f"# {plain(repo_id.rsplit('/', 1)[-1])}"
    return "\n\n".join([f"---\n{data.to_yaml()}\n---", title, *body]) + "\n"


def model_card(
    config: CLIPConfig,
    layout: str,
    repo_id: str,
    license: str | None,
    base_model: str | None,
) -> str:
    """Return the card of a CLIP.

    Args:
        config: what it is.
        layout: of its files; see `CLIP.save_pretrained`.
        repo_id: where it will be.
        license, base_model: as in `card`.
    """
    weights = sum(weight.numel() for weight in expected_weights(config).values())
    similarity = 'model.embed_images(["photo.jpg"]) @ model.embed_texts(["a cat", "a dog"]).T'
    return card(
        repo_id,
        task="zero-shot-image-classification",
        tags=["clip"],
        library=layout,
        license=license,
        base_model=base_model,
        body=[
            f"A CLIP with {describe_tower(config)}. Images and texts become features of "
            f"{config.embed_dim} numbers each. It has {weights / 1e6:.1f} million weights.",
            use(
                f"model = clipkit.CLIP.from_pretrained({repo_id!r})",
                f"print({similarity})",
            ),
        ],
    )


def describe_tower(config: CLIPConfig) -> str:
    """Return the image tower in words."""
    height, width = config.vision.resolution
    kind = "ResNet"
    if isinstance(config.vision, ViTConfig):
        kind = f"vision transformer (patches of {config.vision.patch_size} pixels)"
    return f"a {kind} for images of {height} x {width} pixels"


def use(*lines: str) -> str:
    """Return a paragraph with the code that uses a repository."""
    code = "\n".join(("import clipkit", *lines))
    return f"## Use\n\nInstall `{PACKAGE}`, then:\n\n```python\n{code}\n```"


def plain(text: str) -> str:
    """Return a text on one line, in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", " ".join(text.split()))
