"""How good a model is on labelled or captioned images."""

import torch

from clipkit.classify.metrics import accuracy, recall_at_k
from clipkit.classify.zero_shot import zero_shot_weights
from clipkit.clip import CLIP
from clipkit.data.labelled import Pairs
from clipkit.encode.embed import embed_images, embed_texts
from clipkit.prompts import TEMPLATES, Templates


def zero_shot(
    model: CLIP,
    pairs: Pairs,
    class_names: list[str],
    templates: Templates = TEMPLATES,
    workers: int = 0,
) -> float:
    """Zero-shot top-1 accuracy on labelled pictures, 0 to 1."""
    weights = zero_shot_weights(model, class_names, templates).cpu()
    return accuracy(
        (embed_images(model, pairs.files, workers=workers) @ weights.T).argmax(dim=1),
        torch.tensor(pairs.labels),
    )


def retrieval(model: CLIP, pairs: Pairs, workers: int = 0) -> dict[str, float]:
    """Recall at 1 and 5 between pictures and their first captions, both ways, 0 to 1."""
    images = embed_images(model, pairs.files, workers=workers)
    texts = embed_texts(model, [captions[0] for captions in pairs.captions], truncate=True).cpu()
    return {
        f"{name} R@{k}": recall_at_k(queries, keys, k)
        for name, queries, keys in (
            ("image to text", images, texts),
            ("text to image", texts, images),
        )
        for k in (1, 5)
    }
