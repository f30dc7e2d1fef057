"""Images, their preprocessing, and labelled data sets."""
