"""Turn class names into the weights of a zero-shot classifier (2103.00020, section 3.1)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.clip import CLIP
from clipkit.encode.embed import TEXT_BATCH, embed_texts
from clipkit.errors import TokenizerError
from clipkit.prompts import TEMPLATES, ClassNames, Templates, render


def zero_shot_weights(
    model: CLIP,
    class_names: ClassNames | Iterable[str],
    templates: Templates | None = TEMPLATES,
    *,
    progress: bool = False,
) -> Tensor:
    """Return one unit vector per class: the normalized mean of its prompts' normalized features.

    Image features of unit length times the transpose of the result are cosine similarities.

    Example:
        weights = clipkit.zero_shot_weights(model, ["cat", "dog"], "imagenet")
        cosines = model.embed_images(["photo.jpg"]) @ weights.cpu().T  # (1, 2)

    Args:
        model: its text tower and its tokenizer are used.
        class_names: C names; or label -> its name, or a list of its names.
        templates: texts with one `{}` where the name goes, or functions of the name; or label -> a
            list of them; or the name of a prompt set (`clipkit.prompt_sets`). None takes the names
            as whole prompts, as they are.
        progress: whether to show a bar.

    Returns:
        (C, D) float32 on the model's device, without gradient.

    Raises:
        ConfigError: for names or templates that `clipkit.prompts.render` refuses.
        TokenizerError: for a prompt that is too long.
    """
    _, prompts = render(class_names, templates)
    return weights_of_prompts(model, prompts, progress=progress)


def weights_of_prompts(model: CLIP, prompts: list[list[str]], *, progress: bool = False) -> Tensor:
    """Return the same for prompts that are rendered already, one list for each of C classes."""
    from tqdm import tqdm

    texts = [text for own in prompts for text in own]
    counts = torch.tensor([len(own) for own in prompts], dtype=torch.int64, device="cpu")
    every = torch.arange(len(prompts), dtype=torch.int64, device="cpu")
    classes = every.repeat_interleave(counts)  # (number of texts,)
    # The features of all prompts are never held at once: each batch is added to the sums of its
    # classes. That happens on the CPU, where the order of additions, and so each bit of the result,
    # is always the same.
    sums = torch.zeros(len(prompts), model.config.embed_dim, dtype=torch.float32, device="cpu")
    for start in tqdm(range(0, len(texts), TEXT_BATCH), unit="batch", disable=not progress):
        part = slice(start, start + TEXT_BATCH)
        sums.index_add_(0, classes[part], _embed(model, texts[part]))
    return F.normalize(sums, dim=-1).to(model.device)


def _embed(model: CLIP, prompts: list[str]) -> Tensor:
    """Return the features of prompts (N, D); an error has the remedy that there is for them."""
    try:
        return embed_texts(model, prompts)
    except TokenizerError as error:
        problem = str(error).replace(", or pass truncate=True to cut it", "")
        raise TokenizerError(f"a prompt cannot be used, because its {problem}") from error


def embed_prompts(model: CLIP, prompts: list[list[str]]) -> Tensor:
    """Return the features of all prompts, one list for each of C classes.

    Returns:
        (C, K, D) float32 on the CPU, of unit length; rows of zeros where a class has fewer than K
        prompts.
    """
    features = _embed(model, [text for own in prompts for text in own])
    per_class = torch.split(features, [len(own) for own in prompts])
    return nn.utils.rnn.pad_sequence(list(per_class), batch_first=True)
