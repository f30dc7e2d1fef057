"""A folder that is removed while it is indexed does not come back, and leaves nothing behind."""

import shutil
from pathlib import Path

import pytest
from torch import Tensor

from clipkit.errors import DataError, OutputError
from clipkit.search import Index
from tests.search.conftest import ColorModel, paint


class RemovingModel(ColorModel):
    """Remove a folder when so many images were encoded, as another program might."""

    def __init__(self, folder: Path, images: int) -> None:
        super().__init__()
        self.folder = folder
        self.images = images

    def encode_image(self, image: Tensor) -> Tensor:
        features = super().encode_image(image)
        if self.encoded >= self.images:
            shutil.rmtree(self.folder, ignore_errors=True)
        return features


@pytest.mark.parametrize("images", [1, 4 + 1, 4 + 9])
def test_a_folder_that_is_removed_while_it_is_indexed_does_not_come_back(
    images: int, folder: Path
) -> None:
    """It goes when the model is looked at, at the first image or at the last."""
    with pytest.raises(OutputError, match=r"the folder .*\.clipkit' was removed while it was"):
        Index.build(folder, RemovingModel(folder, images), batch_size=1)
    assert not folder.exists()


def test_a_folder_that_is_removed_while_it_is_updated_does_not_come_back(folder: Path) -> None:
    Index.build(folder, ColorModel())
    paint(folder / "new.png", "red", 9)
    with pytest.raises(OutputError, match="was removed while it was written"):
        Index.open(folder, RemovingModel(folder, 4 + 1)).update()
    assert not folder.exists()


def test_a_folder_that_was_removed_before_an_update_does_not_come_back(folder: Path) -> None:
    index = Index.build(folder, ColorModel())
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="there is no index in"):
        index.update()
    assert not folder.exists()


def test_an_index_elsewhere_outlives_its_images(folder: Path, tmp_path: Path) -> None:
    model = RemovingModel(folder, 4 + 4)
    index = Index.build(folder, model, tmp_path / "index", batch_size=1, workers=1)
    assert len(index) + len(index.skipped) == 9
    with pytest.raises(DataError, match="there is no folder or file"):
        index.update()
