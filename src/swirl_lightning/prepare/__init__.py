"""Commands that make data and bases ready: ``python -m swirl_lightning.prepare.<name>``."""
