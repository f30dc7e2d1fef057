"""Images, their preprocessing, and labeled data sets."""
