"""Text to mesh, without the training code."""
