"""Commands that prepare data and bases: ``python -m swirl_lightning.prepare.<name>``."""

PROGRAM = "python -m swirl_lightning.prepare.{}"
"""What is typed before a command's arguments."""
