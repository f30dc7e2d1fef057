"""Zero-shot classification: class names become the weights of a linear classifier (2103.00020, section 3.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.clip import CLIP
from clipkit.encode.embed import TEXT_BATCH, embed_texts
from clipkit.prompts import TEMPLATES, ClassNames, Templates, render


def zero_shot_weights(
    model: CLIP,
    class_names: ClassNames,
    templates: Templates = TEMPLATES,
    *,
    progress: bool = False,
) -> Tensor:
    """One unit vector per class: the mean over its prompts of their normalised text features, normalised again.

    The features of all prompts are never held at once: each batch is added to the sums of its classes.

    Args:
        model: whose text tower and tokenizer to use.
        class_names: C names; or label -> its name, or a list of its names.
        templates: texts with one `{}` where the name goes, or functions of the name; or label -> a list of them; or
            the name of a prompt set (`clipkit.prompt_sets`).
        progress: whether to show a bar.

    Returns:
        (C, D) float32 on the model's device, without gradient. Image features, normalised, times its transpose are
        cosine similarities.

    Raises:
        ConfigError: for names or templates that `clipkit.prompts.render` refuses.
        TokenizerError: for a prompt that is too long.
    """
    from tqdm import tqdm

    prompts = render(class_names, templates)[1]
    texts = [text for own in prompts for text in own]
    classes = torch.arange(len(prompts)).repeat_interleave(
        torch.tensor([len(own) for own in prompts])
    )
    sums = torch.zeros(len(prompts), model.config.embed_dim)
    batch = TEXT_BATCH
    for start in tqdm(range(0, len(texts), batch), unit="batch", disable=not progress):
        part = slice(start, start + batch)
        # On the CPU, where the order of the additions, and so each bit of the result, is always the same.
        sums.index_add_(0, classes[part], embed_texts(model, texts[part]))
    return F.normalize(sums, dim=-1).to(model.device)
