"""Trees of prefixes, against sets of tuples that know nothing of sorting, and rows one by one."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

import clipkit
from clipkit.config import CLIPConfig, TextConfig, ViTConfig
from clipkit.models import text_transformer
from clipkit.models.prefixes import Integers, Prefixes, cut, grow, sort_rows
from clipkit.models.text_transformer import TextTransformer
from tests.helpers.recorded import record

CPU = torch.device("cpu")
Row = tuple[int, ...]
# How many rows, of how many tokens, and how long the longest is.
SIZES = [(1, 5, 4), (60, 3, 6), (80, 40, 20), (30, 200, 77)]


def make_rows(count: int, vocabulary: int, longest: int, seed: int) -> list[Row]:
    """Return rows with the highest id at the end, as an end of text is. Some start others."""
    draw = random.Random(seed)
    return [
        tuple(sorted(draw.choices(range(1, vocabulary), k=draw.randint(1, longest))))
        for _ in range(count)
    ]


def as_array(rows: list[Row], fill: int = 0) -> Integers:
    width = max(map(len, rows))
    return np.array([[*row, *[fill] * (width - len(row))] for row in rows], np.int64)


def as_tokens(rows: list[Row], fill: int = 0) -> Tensor:
    return torch.from_numpy(as_array(rows, fill))


def prefixes_of(rows: list[Row]) -> list[Row]:
    """Return all distinct beginnings of rows in sorted order, as the nodes are numbered."""
    return sorted({row[: n + 1] for row in rows for n in range(len(row))})


def grown(rows: list[Row]) -> tuple[Integers, Prefixes]:
    ends = np.array([len(row) - 1 for row in rows])
    distinct, _ = sort_rows(as_array(rows), ends)
    return distinct, grow(distinct, CPU)


@pytest.fixture(scope="module")
def model() -> clipkit.CLIP:
    torch.manual_seed(0)
    vision = ViTConfig(resolution=(32, 32), patch_size=32, width=64, layers=1, activation="gelu")
    text = TextConfig(
        width=48, layers=3, head_width=16, activation="quick_gelu", vocab_size=60, context_length=24
    )
    return clipkit.CLIP(CLIPConfig(embed_dim=24, vision=vision, text=text)).eval()


def test_rows_are_sorted_once_each_and_found_again() -> None:
    rows = make_rows(50, 4, 5, seed=0)
    ends = np.array([len(row) - 1 for row in rows])
    distinct, places = sort_rows(as_array(rows, fill=3), ends)
    for row, place in zip(rows, places, strict=True):
        assert tuple(int(i) for i in distinct[place] if i >= 0) == row


@pytest.mark.parametrize("count, vocabulary, longest", [*SIZES, (2, 9, 77)])
def test_a_tree_has_one_node_for_each_distinct_prefix(
    count: int, vocabulary: int, longest: int
) -> None:
    rows = make_rows(count, vocabulary, longest, seed=count)
    distinct, tree = grown(rows)
    assert [tuple(int(i) for i in row if i >= 0) for row in distinct] == sorted(set(rows))
    expected = prefixes_of(rows)
    assert tree.ids.tolist() == [prefix[-1] for prefix in expected]
    assert tree.positions.tolist() == [len(prefix) - 1 for prefix in expected]
    assert [expected[leaf] for leaf in tree.leaves.tolist()] == sorted(set(rows))


@pytest.mark.parametrize("count, vocabulary, longest", SIZES)
def test_each_node_sees_its_prefixes_and_nothing_else(
    count: int, vocabulary: int, longest: int
) -> None:
    rows = make_rows(count, vocabulary, longest, seed=count + 1)
    _, tree = grown(rows)
    expected = prefixes_of(rows)
    flat = tree.groups.flatten().tolist()
    width = tree.groups.shape[1]
    for node, place in enumerate(tree.places.tolist()):
        assert flat[place] == node
        group, query = divmod(place, width)
        sees = tree.mask[group, 0, query]
        seen = [expected[int(key)] for key in tree.groups[group][sees]]
        assert sorted(seen) == [expected[node][: n + 1] for n in range(len(expected[node]))]
    assert tree.mask.any(dim=-1).all()  # a query that sees nothing would make NaN


@pytest.mark.parametrize("size", [1, 7, 40, 10_000])
def test_cuts_hold_trees_to_their_size(size: int) -> None:
    rows = make_rows(90, 30, 18, seed=3)
    distinct, _ = grown(rows)
    bounds = cut(distinct, size)
    cut_rows = itertools.chain.from_iterable(range(*bound) for bound in bounds)
    assert [*cut_rows] == [*range(len(distinct))]
    for start, stop in bounds:
        nodes = len(grow(distinct[start:stop], CPU).ids)
        assert nodes <= size or stop - start == 1


@pytest.mark.parametrize("size", [1, 7, 40])
def test_cuts_make_trees_no_smaller_than_they_must_be(size: int) -> None:
    distinct, _ = grown(make_rows(90, 30, 18, seed=3))
    for start, stop in cut(distinct, size)[:-1]:
        with_one_row_more = len(grow(distinct[start : stop + 1], CPU).ids)
        assert with_one_row_more > size


@pytest.mark.parametrize("size", [1, 16, 1024])
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-14), (torch.bfloat16, 0.06)]
)
def test_features_equal_those_of_rows_alone(
    dtype: torch.dtype, tolerance: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_transformer, "CPU_NODES", size)
    torch.manual_seed(0)
    text = TextTransformer(
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
    tokens = as_tokens(rows)
    alone = torch.cat([text(row[None]) for row in tokens]).detach()
    with torch.no_grad():
        together = text(tokens)
    assert together.dtype == dtype
    torch.testing.assert_close(together, alone, rtol=0, atol=tolerance * alone.abs().max().item())


def test_what_follows_the_end_has_no_influence(model: clipkit.CLIP) -> None:
    rows = [(*row, 59) for row in make_rows(40, 59, 20, seed=6)]
    with torch.no_grad():
        first, second = (model.encode_text(as_tokens(rows, fill)) for fill in (0, 7))
    assert torch.equal(first, second)


def text_gradients(model: clipkit.CLIP, features: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    features.square().sum().backward()
    parameters = model.text.named_parameters()
    return {name: p.grad.clone() for name, p in parameters if p.grad is not None}


def test_with_gradients_they_are_those_of_rows_alone(model: clipkit.CLIP) -> None:
    tokens = as_tokens(make_rows(12, 60, 20, seed=7))
    together = text_gradients(model, model.encode_text(tokens))
    one_by_one = torch.cat([model.encode_text(row[None]) for row in tokens])
    alone = text_gradients(model, one_by_one)
    assert together.keys() == dict(model.text.named_parameters()).keys()
    for name, value in together.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-4)


def test_less_is_computed() -> None:
    """One token passes the first block for each distinct prefix."""
    names = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefgh"]
    texts = [f"a photo of a {name}, a type of thing." for name in names]
    real = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    shapes: list[tuple[int, ...]] = []
    record(real.text.transformer.resblocks[0], "ln_1", shapes)
    real.embed_texts(texts)
    passed = [math.prod(shape[:-1]) for shape in shapes]
    rows = [tuple(real.tokenizer.encode(text)) for text in texts]
    # The start of text, the prefixes, and an end of text for each row.
    assert sum(passed) == 1 + len(prefixes_of(rows)) + len(rows)
    assert sum(passed) < sum(map(len, rows)) * 0.8


def test_inference_mode_and_a_single_row(model: clipkit.CLIP) -> None:
    tokens = as_tokens(make_rows(9, 60, 20, seed=8))
    with torch.inference_mode():
        together, alone = model.encode_text(tokens), model.encode_text(tokens[3:4])
        assert model.encode_text(tokens[:0]).shape == (0, 24)
    torch.testing.assert_close(together[3:4], alone, rtol=0, atol=1e-5)
