"""Sampling and scoring of token ids. Nothing here imports another part of the project."""
