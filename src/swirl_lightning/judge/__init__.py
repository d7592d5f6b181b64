"""Scores of predicted states by a language model."""

from swirl_lightning.judge.client import Judge, JudgeAnswer

__all__ = ["Judge", "JudgeAnswer"]
