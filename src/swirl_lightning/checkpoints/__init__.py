"""Checkpoints: what they hold, how they are written and read, and modules made from them."""
