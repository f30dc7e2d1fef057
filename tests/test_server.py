"""The example of a server answers as the classifier does, from many threads at once."""

import importlib.util
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from clipkit import ImageClassifier, Prediction
from tests.helpers.threads import in_threads

ROOT = Path(__file__).parents[1]
PHOTOS = sorted((ROOT / "examples" / "photos").glob("*.jpg"))
LABELS = ["cat", "cup of coffee", "rocket"]


class Counting:
    """Take the place of a classifier, and count the threads that are in `predict`.

    Args:
        awaited: the threads stay until so many have been in it together, or for a minute.
    """

    labels = LABELS

    def __init__(self, awaited: int) -> None:
        self.awaited = awaited
        self.changed = threading.Condition()
        self.now = 0
        self.most = 0

    def predict(self, content: bytes) -> Prediction:
        with self.changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.most >= self.awaited, timeout=60)
        time.sleep(0.02)  # for one that should wait for its turn to come in
        with self.changed:
            self.now -= 1
        return Prediction(LABELS, torch.tensor([0.5, 0.25, 0.25]))


@pytest.fixture(scope="module")
def server() -> Any:
    """Return the example as a module."""
    spec = importlib.util.spec_from_file_location("server", ROOT / "examples" / "server.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def classifier(server: Any) -> ImageClassifier:
    return server.load_classifier("tiny", LABELS)


@pytest.fixture(scope="module")
def client(server: Any, classifier: ImageClassifier) -> TestClient:
    return TestClient(server.create_app(classifier, at_once=4))


def predict(client: TestClient, content: bytes, **query: Any) -> Any:
    files = {"image": ("photo.jpg", content, "image/jpeg")}
    return client.post("/predict", files=files, params=query)


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
def test_an_upload_is_predicted(
    client: TestClient, classifier: ImageClassifier, photo: Path
) -> None:
    answer = predict(client, photo.read_bytes())
    assert answer.status_code == 200
    expected = classifier.predict(photo).to_dict()
    del expected["path"]  # which the server does not know
    assert answer.json() == expected
    assert answer.json()["label"].endswith(photo.stem)


def test_the_number_of_labels(client: TestClient) -> None:
    content = PHOTOS[0].read_bytes()
    assert [len(predict(client, content, k=k).json()["top"]) for k in (1, 2, 9)] == [1, 2, 3]
    for k in (0, 1001, "many"):
        assert predict(client, content, k=k).status_code == 422


def test_health(client: TestClient) -> None:
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "labels": LABELS}


def test_what_is_no_image_is_the_senders_fault(client: TestClient) -> None:
    for content in (b"", b"no image", PHOTOS[0].read_bytes()[:2000]):
        answer = predict(client, content)
        assert answer.status_code == 422
        assert "Is it complete, and of a type that Pillow reads?" in answer.json()["detail"]
    assert client.post("/predict").status_code == 422
    assert client.get("/predict").status_code == 405


def test_uploads_have_a_limit(
    server: Any, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = PHOTOS[0].read_bytes()
    monkeypatch.setattr(server, "MOST_BYTES", len(content))
    assert predict(client, content).status_code == 200
    answer = predict(client, content + b"!")
    assert answer.status_code == 413
    assert "may have 35,042 bytes" in answer.json()["detail"]


def test_sixteen_clients_at_once(server: Any, classifier: ImageClassifier) -> None:
    contents = [photo.read_bytes() for photo in PHOTOS]
    expected = [classifier.predict(content).to_dict() for content in contents]
    with TestClient(server.create_app(classifier, at_once=16)) as client:
        found = in_threads(lambda i: predict(client, contents[i]).json(), len(contents), rounds=1)
    assert found == [expected] * 16


@pytest.mark.parametrize("at_once", [1, 3])
def test_so_many_images_are_looked_at_together(server: Any, at_once: int) -> None:
    """The others wait for their turn."""
    seen = Counting(awaited=at_once)
    client = TestClient(server.create_app(seen, at_once))
    in_threads(lambda i: predict(client, b"image").json(), 1, rounds=2)
    assert seen.most == at_once
