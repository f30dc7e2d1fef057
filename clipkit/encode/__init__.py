"""Features of many images and texts, by anything that encodes."""
