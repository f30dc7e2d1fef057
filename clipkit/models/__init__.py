"""The two image towers, the text tower, and CLIP, which joins them."""
