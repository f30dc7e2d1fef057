"""Trees of prefixes: against sets of tuples, which know nothing of sorting, and rows encoded one by one."""

import itertools
import random

import numpy as np
import pytest
import torch

import clipkit
from clipkit.config import CLIPConfig, TextConfig, ViTConfig
from clipkit.models import prefixes, text_transformer

CPU = torch.device("cpu")


def make_rows(count: int, vocabulary: int, longest: int, seed: int) -> list[tuple[int, ...]]:
    """Rows in which the highest id stands at the end, as an end of text does; some are the start of others."""
    draw = random.Random(seed)
    return [
        tuple(sorted(draw.choices(range(1, vocabulary), k=draw.randint(1, longest))))
        for _ in range(count)
    ]


def as_array(rows: list[tuple[int, ...]], fill: int = 0) -> np.ndarray:
    width = max(map(len, rows))
    return np.array([[*row, *[fill] * (width - len(row))] for row in rows])


def grown(rows: list[tuple[int, ...]]) -> tuple[np.ndarray, prefixes.Prefixes]:
    ends = np.array([len(row) - 1 for row in rows])
    distinct, _ = prefixes.sort_rows(as_array(rows), ends)
    return distinct, prefixes.grow(distinct, CPU)


@pytest.fixture(scope="module")
def model() -> clipkit.CLIP:
    torch.manual_seed(0)
    vision = ViTConfig(resolution=32, patch_size=32, width=64, layers=1, activation="gelu")
    text = TextConfig(
        width=48, layers=3, head_width=16, activation="quick_gelu", vocab_size=60, context_length=24
    )
    return clipkit.CLIP(CLIPConfig(embed_dim=24, vision=vision, text=text)).eval()


@pytest.mark.parametrize(
    "count, vocabulary, longest", [(1, 5, 4), (60, 3, 6), (80, 40, 20), (30, 200, 77), (2, 9, 77)]
)
def test_a_tree_has_one_node_for_each_distinct_prefix(
    count: int, vocabulary: int, longest: int
) -> None:
    rows = make_rows(count, vocabulary, longest, seed=count)
    distinct, tree = grown(rows)
    assert [tuple(int(i) for i in row if i >= 0) for row in distinct] == sorted(set(rows))
    expected = sorted(
        {row[: n + 1] for row in rows for n in range(len(row))}
    )  # in order, as the nodes are numbered
    assert tree.ids.tolist() == [prefix[-1] for prefix in expected]
    assert tree.positions.tolist() == [len(prefix) - 1 for prefix in expected]
    assert [expected[leaf] for leaf in tree.leaves.tolist()] == sorted(set(rows))


@pytest.mark.parametrize(
    "count, vocabulary, longest", [(1, 5, 4), (60, 3, 6), (80, 40, 20), (30, 200, 77)]
)
def test_each_node_sees_its_prefixes_and_nothing_else(
    count: int, vocabulary: int, longest: int
) -> None:
    rows = make_rows(count, vocabulary, longest, seed=count + 1)
    _, tree = grown(rows)
    expected = sorted({row[: n + 1] for row in rows for n in range(len(row))})
    flat = tree.groups.flatten().tolist()
    width = tree.groups.shape[1]
    for node, place in enumerate(tree.places.tolist()):
        assert flat[place] == node
        group, query = divmod(place, width)
        seen = [
            expected[int(tree.groups[group, key])]
            for key in range(width)
            if tree.mask[group, 0, query, key]
        ]
        assert sorted(seen) == [expected[node][: n + 1] for n in range(len(expected[node]))]
    assert tree.mask.any(dim=-1).all()  # a query that sees nothing would make NaN


@pytest.mark.parametrize("size", [1, 7, 40, 10_000])
def test_cuts_hold_trees_to_their_size(size: int) -> None:
    rows = make_rows(90, 30, 18, seed=3)
    distinct, _ = grown(rows)
    bounds = prefixes.cut(distinct, size)
    assert [*itertools.chain.from_iterable(range(*bound) for bound in bounds)] == [
        *range(len(distinct))
    ]
    nodes = [len(prefixes.grow(distinct[start:stop], CPU).ids) for start, stop in bounds]
    assert all(
        n <= size or stop - start == 1 for n, (start, stop) in zip(nodes, bounds, strict=True)
    )
    for n, (start, stop), (_, after) in zip(
        nodes[:-1], bounds[:-1], bounds[1:], strict=True
    ):  # and no smaller
        assert after and len(prefixes.grow(distinct[start : stop + 1], CPU).ids) > size >= min(
            n, size
        )


@pytest.mark.parametrize("size", [1, 16, 1024])
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-14), (torch.bfloat16, 0.06)]
)
def test_features_equal_those_of_rows_alone(
    model: clipkit.CLIP,
    dtype: torch.dtype,
    tolerance: float,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_transformer, "CPU_NODES", size)
    text = clipkit.models.text_transformer.TextTransformer(
        context_length=24,
        vocab_size=60,
        width=48,
        layers=3,
        heads=3,
        mlp_width=192,
        activation="gelu",
        output_dim=24,
    ).to(dtype)
    rows = make_rows(70, 60, 24, seed=5) * 2  # repeats
    random.Random(0).shuffle(rows)
    tokens = torch.from_numpy(as_array(rows, fill=0))
    alone = torch.cat([text(row[None]) for row in tokens]).detach()
    with torch.no_grad():
        together = text(tokens)
    assert together.dtype == dtype
    torch.testing.assert_close(together, alone, rtol=0, atol=tolerance * alone.abs().max().item())


def test_what_follows_the_end_has_no_influence(model: clipkit.CLIP) -> None:
    rows = make_rows(40, 59, 20, seed=6)
    filled = [as_array([(*row, 59) for row in rows], fill) for fill in (0, 7)]
    with torch.no_grad():
        first, second = (model.encode_text(torch.from_numpy(array)) for array in filled)
    assert torch.equal(first, second)


def test_with_gradients_they_are_those_of_rows_alone(model: clipkit.CLIP) -> None:
    tokens = torch.from_numpy(as_array(make_rows(12, 60, 20, seed=7)))
    gradients = []
    for features in (
        model.encode_text(tokens),
        torch.cat([model.encode_text(row[None]) for row in tokens]),
    ):
        model.zero_grad()
        features.square().sum().backward()
        gradients.append(
            {
                name: p.grad.clone()
                for name, p in model.text.named_parameters()
                if p.grad is not None
            }
        )
    assert gradients[0].keys() == dict(model.text.named_parameters()).keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], rtol=1e-4, atol=1e-4)


def test_less_is_computed(model: clipkit.CLIP) -> None:
    """A hook on the first block counts the tokens that pass it: one for each distinct prefix."""
    names = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefgh"]
    texts = [f"a photo of a {name}, a type of thing." for name in names]
    real = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    passed = []
    real.text.transformer.resblocks[0].register_forward_hook(
        lambda module, x, y: passed.append(x[0].shape[:-1].numel())
    )
    real.embed_texts(texts)
    rows = [real.tokenizer.encode(text) for text in texts]
    starts = {tuple(row[: n + 1]) for row in rows for n in range(len(row))}
    assert sum(passed) == 1 + len(starts) + len(rows)  # start of text, prefixes, ends of text
    assert sum(passed) < sum(map(len, rows)) * 0.8


def test_inference_mode_and_a_single_row(model: clipkit.CLIP) -> None:
    tokens = torch.from_numpy(as_array(make_rows(9, 60, 20, seed=8)))
    with torch.inference_mode():
        together, alone = model.encode_text(tokens), model.encode_text(tokens[3:4])
        assert model.encode_text(tokens[:0]).shape == (0, 24)
    torch.testing.assert_close(together[3:4], alone, rtol=0, atol=1e-5)
