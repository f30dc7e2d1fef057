"""Say how far a classifier can be trusted."""

from clipkit.classify.stored import StoredClassifier


class TrustedClassifier(StoredClassifier):
    """Say how far what a classifier predicts can be trusted; see `StoredClassifier`."""
