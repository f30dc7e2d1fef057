"""Serve a classifier over HTTP: the upload of an image to /predict gives its labels as JSON.

    pip install fastapi uvicorn python-multipart         # beside clipkit
    python examples/server.py pets/                      # a classifier that was saved
    python examples/server.py owner/pets                 # one on the hub
    python examples/server.py tiny --labels cat "cup of coffee" rocket    # names alone

    curl -F image=@examples/photos/coffee.jpg "localhost:8000/predict?k=1"
    curl localhost:8000/health

Cost: `tiny` starts in a few seconds, and holds 0.75 GB. Expected of the third command and the
photo: the label "cup of coffee".

Requests are answered by threads of one process, which share the classifier: prediction changes
nothing in it. At most `--at-once` of them compute at a time, so that they do not take the
processors from each other; the others wait. For more than one process or machine, start several
behind a proxy, which also should bound the size of requests: FastAPI receives a whole one before
this program can refuse it.
"""

import argparse
import os
import threading
from typing import Annotated, Any

import torch
from fastapi import FastAPI, HTTPException, Query, UploadFile

import clipkit
from clipkit.errors import ImageError

MOST_BYTES = 20 << 20  # of an upload


def create_app(classifier: clipkit.ImageClassifier, at_once: int = 1) -> FastAPI:
    """Return the application: `POST /predict` and `GET /health`.

    Args:
        classifier: in eval mode. It must not be fitted or changed while the server runs: load
            another one, and make another application.
        at_once: how many images are looked at together.
    """
    app = FastAPI(title="clipkit", version=clipkit.__version__)
    turns = threading.BoundedSemaphore(at_once)

    @app.get("/health")
    def health() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Tell that the server is there, and what it can tell apart."""
        return {"status": "ok", "labels": classifier.labels}

    # No `async`: FastAPI runs such a function in a thread, and goes on taking requests.
    @app.post("/predict")
    def predict(  # pyright: ignore[reportUnusedFunction]
        image: UploadFile, k: Annotated[int, Query(ge=1, le=1000)] = 5
    ) -> dict[str, Any]:
        """Tell what is in an image: the label, its probability, and the k most probable ones."""
        content = image.file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise HTTPException(413, f"an image may have {MOST_BYTES:,} bytes, and this has more")
        try:
            with turns:
                return classifier.predict(content).to_dict(k)
        except ImageError as error:  # the sender's, who is told what is wrong with it
            raise HTTPException(422, str(error)) from error

    return app


def load_classifier(name: str, labels: list[str] | None) -> clipkit.ImageClassifier:
    """Return a classifier from a folder or the hub; or of a model, if there are labels."""
    if labels is None:
        classifier = clipkit.ImageClassifier.load(name)
    else:
        classifier = clipkit.ImageClassifier.zero_shot(name, labels)
    classifier.model = classifier.model.optimize()  # for inference alone
    return classifier


def main() -> None:
    import uvicorn  # pyright: ignore[reportMissingImports]

    parser = argparse.ArgumentParser(description="Serve a classifier over HTTP.")
    parser.add_argument("classifier", help="a folder, a hub id; or a model, with --labels")
    parser.add_argument("--labels", nargs="+", help="class names, for zero-shot")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--at-once", type=int, default=1, help="images looked at together")
    args = parser.parse_args()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.at_once))
    classifier = load_classifier(args.classifier, args.labels)
    uvicorn.run(create_app(classifier, args.at_once), host=args.host, port=args.port)


if __name__ == "__main__":
    main()
