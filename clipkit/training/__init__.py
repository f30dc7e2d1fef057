"""Training: the contrastive loss."""
