"""Build the two image towers and the text tower, and what they are made of."""
