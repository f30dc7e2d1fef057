"""Classifiers on top of image features."""
