"""Commands that prepare data and bases: ``python -m swirl_lightning.prepare.<name>``."""
