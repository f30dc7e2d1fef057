"""What the page about sentence-transformers says of it is so where it is installed."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import clipkit
from clipkit.errors import ImageError, TokenizerError, UnsupportedCheckpointError

LONG = "a photo of a cat " * 40
PAGE = Path(__file__).parents[2] / "docs" / "from_sentence_transformers.md"
# transformers reads paths by torchvision, which says that it will not do so for ever.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a small model in the layout of transformers."""
    torch.manual_seed(0)
    vision = clipkit.ViTConfig(
        resolution=(32, 32), patch_size=16, width=64, layers=2, activation="quick_gelu"
    )
    text = clipkit.TextConfig(width=64, layers=2, activation="quick_gelu")
    model = clipkit.CLIP(clipkit.CLIPConfig(embed_dim=32, vision=vision, text=text)).eval()
    path = tmp_path_factory.mktemp("peer") / "mine"
    model.save_pretrained(path, layout="transformers")
    return path


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return pytest.importorskip("sentence_transformers").SentenceTransformer(
        str(folder), device="cpu"
    )


@pytest.fixture(scope="module")
def ours(folder: Path) -> clipkit.CLIP:
    return clipkit.CLIP.from_pretrained(folder, device="cpu")


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Image.Image:
    """Return an image of the size that the model sees, which is also "photo.png"."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save("photo.png")
    return image


def apart(one: NDArray[Any] | torch.Tensor, other: NDArray[Any] | torch.Tensor) -> float:
    """Return the largest difference of two arrays of the same shape."""
    assert one.shape == other.shape
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


@torch.no_grad()
def test_its_vectors_have_the_lengths_of_the_towers(
    theirs: Any, ours: clipkit.CLIP, photo: Image.Image
) -> None:
    texts = theirs.encode(["a cat", "a dog in the snow"])
    assert isinstance(texts, np.ndarray)
    assert texts.dtype == np.float32
    assert apart(texts, ours.encode_text(ours.tokenizer(["a cat", "a dog in the snow"]))) < 1e-4
    images = theirs.encode([photo], convert_to_tensor=True)
    assert isinstance(images, torch.Tensor)
    assert callable(ours.preprocess)
    assert apart(images, ours.encode_image(ours.preprocess(photo)[None])) < 1e-4


def test_a_list_is_of_one_kind(theirs: Any, photo: Image.Image) -> None:
    with pytest.raises(ValueError, match="mixes multiple modalities"):
        theirs.encode(["a cat", photo])
    with pytest.raises(ValueError, match="mixes multiple modalities"):
        theirs.encode(["a cat", "photo.png"])


def test_a_path_is_an_image_where_there_is_one(
    theirs: Any, ours: clipkit.CLIP, photo: Image.Image
) -> None:
    assert apart(theirs.encode("photo.png"), theirs.encode(photo)) < 1e-5
    text = theirs.encode("elsewhere.png", normalize_embeddings=True)
    assert apart(text, ours.embed_texts(["elsewhere.png"])[0]) < 1e-5
    path = theirs.encode("photo.png", normalize_embeddings=True)
    assert apart(path, ours.embed_texts(["photo.png"])[0]) > 0.01


def test_it_cuts_long_texts_without_a_word(theirs: Any, ours: clipkit.CLIP) -> None:
    cut = theirs.encode([LONG], normalize_embeddings=True)
    assert apart(cut, ours.embed_texts([LONG], truncate=True)) < 1e-5
    with pytest.raises(TokenizerError, match="more than context_length=77"):
        ours.embed_texts([LONG])


def test_it_pads_to_the_longest(theirs: Any) -> None:
    assert theirs.preprocess(["a cat", "a dog in the snow"])["input_ids"].shape == (2, 7)


@pytest.mark.usefixtures("photo")
def test_an_image_that_cannot_be_read_is_not_named(theirs: Any, ours: clipkit.CLIP) -> None:
    Path("bad.png").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match="Unsupported image file") as told:
        theirs.encode(["photo.png", "bad.png"])
    assert "bad.png" not in str(told.value)
    with pytest.raises(ImageError, match=r"bad\.png"):
        ours.embed_images(["photo.png", "bad.png"])


def test_turned_and_transparent_images(theirs: Any, ours: clipkit.CLIP, photo: Image.Image) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.save("turned.png", exif=turned)
    assert apart(theirs.encode(Image.open("turned.png")), theirs.encode(photo)) == 0
    upright = ours.embed_images([photo.rotate(-90)])
    assert apart(ours.embed_images(["turned.png"]), upright) < 1e-5
    assert apart(upright, ours.embed_images([photo])) > 1e-3

    clear = photo.convert("RGBA")
    clear.putalpha(0)
    clear.save("clear.png")
    white = Image.new("RGB", (32, 32), "white")
    assert apart(theirs.encode("clear.png"), theirs.encode(photo)) < 1e-5
    assert apart(theirs.encode(clear), theirs.encode(white)) < 1e-5
    assert apart(ours.embed_images(["clear.png"]), ours.embed_images([white])) < 1e-5


def test_it_resizes_a_level_off(theirs: Any, ours: clipkit.CLIP, photo: Image.Image) -> None:
    large = photo.resize((150, 100), Image.Resampling.BICUBIC)
    pixels = theirs.preprocess([large])["pixel_values"][0]
    assert callable(ours.preprocess)
    assert 0 < apart(pixels, ours.preprocess(large)) < 2.1 / 255 / 0.26


def test_its_precisions_are_those_of_the_page(theirs: Any) -> None:
    row = PAGE.read_text("utf-8").partition('`precision="')[2].partition(" |")[0]
    named = [name.strip('`"') for name in row.split(", ")]
    assert named == ["int8", "uint8", "binary", "ubinary"]
    for name in named:
        assert theirs.encode(["a cat", "a dog"], precision=name).itemsize == 1


def test_paraphrase_mining_takes_images(theirs: Any, photo: Image.Image) -> None:
    util = pytest.importorskip("sentence_transformers").util
    pairs = util.paraphrase_mining(theirs, [photo, photo.rotate(90), photo.copy()])
    assert pairs[0][1:] == [0, 2]


def test_its_loss_has_one_direction_and_with_both_is_ours(theirs: Any) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    images, texts = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    one = losses.MultipleNegativesRankingLoss(theirs)
    logits = 20 * torch.cosine_similarity(images[:, None], texts[None], dim=2)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(6))
    assert apart(one.compute_loss_from_embeddings([images, texts], None), expected) < 1e-5

    code = PAGE.read_text("utf-8").partition("`directions=")[2].partition("`")[0]
    options: dict[str, Any] = eval(f"dict(directions={code})")
    both = losses.MultipleNegativesRankingLoss(theirs, **options)
    ours = clipkit.clip_loss(images, texts, torch.tensor(20.0).log())
    assert apart(both.compute_loss_from_embeddings([images, texts], None), ours) < 1e-5


def test_folders_that_it_wrote_load(theirs: Any, ours: clipkit.CLIP, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the card that it writes
        theirs.save(str(tmp_path / "saved"))
    saved = clipkit.CLIP.from_pretrained(tmp_path / "saved", device="cpu")
    assert torch.equal(saved.embed_texts(["a cat"]), ours.embed_texts(["a cat"]))


def test_the_published_layout_is_told(theirs: Any, folder: Path, tmp_path: Path) -> None:
    """The models `clip-ViT-*` have their CLIP in a folder of their own."""
    shutil.copytree(folder, tmp_path / "0_CLIPModel")
    kind = "sentence_transformers.models.CLIPModel"
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": kind}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    published = pytest.importorskip("sentence_transformers").SentenceTransformer
    model = published(str(tmp_path), device="cpu")
    assert apart(model.encode(["a cat"]), theirs.encode(["a cat"])) == 0
    with pytest.raises(UnsupportedCheckpointError, match="0_CLIPModel"):
        clipkit.CLIP.from_pretrained(tmp_path, device="cpu")
