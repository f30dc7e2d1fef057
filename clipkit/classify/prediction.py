"""Hold what a classifier says about an image."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from torch import Tensor

from clipkit.errors import ConfigError

_BAR = 160  # pixels of a probability of 1
_LISTED = 5  # labels of a set in a line


class Prediction:
    """Hold the probabilities of all classes for one image.

    `dict(prediction)` is `to_dict()`, and web frameworks such as FastAPI return it as JSON so.

    Example:
        prediction = classifier.predict("photo.jpg")
        print(prediction.label, prediction.top(5))

    Args:
        labels: C names.
        probabilities: (C,) float32, on the CPU, with the sum 1.
        path: the image's file; None for an image that has none.

    Attributes:
        labels, probabilities, path: as above.
        set: labels among which the right one is as often as `predict(coverage=...)` was asked, the
            most probable first. None unless it was asked for, as are the others below.
        rejected: whether the image is of none of the classes, by `predict(reject=True)`.
        present: the labels that are in the image, by `predict(several=True)`, the most probable
            first. It may be empty.
        presence: (C,) float32, the probability of each label by itself that it is in the image.
    """

    def __init__(self, labels: list[str], probabilities: Tensor, path: str | None = None) -> None:
        self.labels = labels
        self.probabilities = probabilities
        self.path = path
        self.set: list[str] | None = None
        self.rejected: bool | None = None
        self.present: list[str] | None = None
        self.presence: Tensor | None = None

    @property
    def label(self) -> str:
        """Return the most probable label."""
        return self.labels[int(self.probabilities.argmax())]

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """Return the k most probable labels with their probabilities, the most probable first.

        Returns:
            k pairs, or C if there are fewer classes.

        Raises:
            ConfigError: if k is no integer of at least 1.
        """
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise ConfigError(f"top needs k of at least 1, not {k!r}")
        best = self.probabilities.argsort(descending=True, stable=True)[:k]  # (k,)
        return [(self.labels[int(i)], float(self.probabilities[i])) for i in best]

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """Return the prediction as plain values, which JSON can hold.

        Args:
            k: how many labels "top" has.

        Returns:
            "label", its "probability", the k most probable labels with theirs as "top"; "set",
            "rejected", and "present" with probabilities, as far as they were asked for; and the
            image's "path" if it has one.

        Raises:
            ConfigError: if k is no integer of at least 1.

        Example:
            >>> import torch
            >>> Prediction(["cat", "dog"], torch.tensor([0.25, 0.75])).to_dict(k=1)
            {'label': 'dog', 'probability': 0.75, 'top': [{'label': 'dog', 'probability': 0.75}]}
        """
        ranked = [{"label": label, "probability": share} for label, share in self.top(k)]
        values: dict[str, Any] = {**ranked[0], "top": ranked}
        if self.set is not None:
            values["set"] = list(self.set)
        if self.rejected is not None:
            values["rejected"] = self.rejected
        if self.present is not None:
            values["present"] = [
                {"label": label, "probability": share} for label, share in self._present()
            ]
        return values if self.path is None else {**values, "path": self.path}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield the names and values of `to_dict`."""
        return iter(self.to_dict().items())

    def __repr__(self) -> str:
        shown = [f"{label:.40} {probability:.2f}" for label, probability in self.top(2)]
        if len(self.labels) > len(shown):
            shown.append("...")
        parts = [", ".join(shown), *self._verdicts()]
        parts += [] if self.path is None else [self.path]
        return f"Prediction({'; '.join(parts)})"

    def _repr_html_(self) -> str:
        """Return a table for notebooks: the most probable labels with bars."""
        rows = [
            f"<tr><td style='text-align: left'>{escape(label)}</td>"
            f"<td style='text-align: left; width: {_BAR}px'><div style='background: #4c8bb8; "
            f"height: 0.8em; width: {max(1, round(share * _BAR))}px'></div></td>"
            f"<td style='text-align: right'>{share:.1%}</td></tr>"
            for label, share in self.top()
        ]
        rows += [
            f"<tr><td style='text-align: left' colspan='3'>{escape(verdict)}</td></tr>"
            for verdict in self._verdicts()
        ]
        caption = "" if self.path is None else f"<caption>{escape(self.path)}</caption>"
        return f"<table>{caption}<tbody>{''.join(rows)}</tbody></table>"

    def _present(self) -> list[tuple[str, float]]:
        """Return the labels that are present, with their probabilities."""
        if self.present is None or self.presence is None:
            return []
        return [(label, float(self.presence[self.labels.index(label)])) for label in self.present]

    def _verdicts(self) -> list[str]:
        """Return in words what was asked for beside probabilities."""
        verdicts: list[str] = []
        if self.rejected:
            verdicts.append("none of these")
        if self.set is not None:
            verdicts.append(f"set: {_listed(self.set)}")
        if self.present is not None:
            shares = [f"{label:.40} {share:.2f}" for label, share in self._present()]
            verdicts.append(f"present: {_listed(shares) or 'nothing'}")
        return verdicts


def _listed(texts: list[str]) -> str:
    """Return the first of some texts, and how many more there are."""
    shown = ", ".join(f"{text:.45}" for text in texts[:_LISTED])
    more = len(texts) - _LISTED
    return f"{shown} and {more:,} more" if more > 0 else shown


def make_predictions(
    labels: list[str], rows: Tensor, paths: Sequence[str | None]
) -> list[Prediction]:
    """Return a prediction for each row of probabilities (N, C), with the path of its image."""
    return [Prediction(labels, row, path) for row, path in zip(rows, paths, strict=True)]
