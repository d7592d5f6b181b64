"""Sampling and scoring of token ids: nothing here knows of images, texts, models of the world or the project."""
