"""See inside a CLIP: dense maps, attention, explanations, and how robust a classifier is."""
