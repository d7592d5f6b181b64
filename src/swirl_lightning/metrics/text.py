"""BLEU and ROUGE-L of predicted texts, row by row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from swirl_lightning.metrics.row_mean import RowMean


class BLEU(RowMean):
    """Sentence BLEU-4 by nltk with smoothing method 3, times 100, mean over rows.

    By characters this is StableToolBench's metric of API simulators (``sentence_bleu([list(reference)],
    list(prediction), smoothing_function=SmoothingFunction().method3)``); by words it is far lower on the same
    texts, so name the unit with every number.

    Args:
        name: as for `RowMean`.
        unit: ``char``, or ``word`` (split at white space).
        kwargs: as for `RowMean`.

    Raises:
        ImportError: nltk is not installed.
        ValueError: another unit.
    """

    def __init__(self, name: str = "bleu_char", unit: str = "char", **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        if unit not in ("char", "word"):
            raise ValueError(f"unit must be 'char' or 'word', got {unit!r}")
        self.unit = unit
        _require_nltk()

    def score(self, predicted: Sequence[str], wanted: Sequence[str]) -> list[float]:
        """Compute the score of each pair, in [0, 100]."""
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

        smooth = SmoothingFunction().method3
        split = list if self.unit == "char" else str.split
        return [
            100 * float(sentence_bleu([split(truth)], split(guess), smoothing_function=smooth))
            for guess, truth in zip(predicted, wanted, strict=True)
        ]


def _require_nltk() -> None:
    try:
        import nltk  # noqa: F401
    except ImportError as error:
        raise ImportError("BLEU needs nltk: pip install 'swirl-lightning[text]'") from error


class RougeL(RowMean):
    """ROUGE-L F1 in [0, 1], mean over rows: Google's rouge-score.

    Words are runs of a-z and 0-9 in the lower-cased text; a text without any scores 0. The longest common
    subsequence is computed 64 words at a time and more (Hyyrö 2004, "Bit-parallel LCS-length computation
    revisited"), because states have thousands of words.

    Args:
        name: as for `RowMean`.
        stem: compare words without their endings (nltk's Porter stemmer, of words with more than three letters).
        kwargs: as for `RowMean`.

    Raises:
        ImportError: ``stem``, and nltk is not installed.
    """

    def __init__(self, name: str = "rouge_l", stem: bool = False, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.stem = stem
        if stem:
            _require_nltk()

    def score(self, predicted: Sequence[str], wanted: Sequence[str]) -> list[float]:
        """Compute the score of each pair, in [0, 1]."""
        return [rouge_l(guess, truth, self.stem) for guess, truth in zip(predicted, wanted, strict=True)]


def rouge_l(predicted: str, wanted: str, stem: bool = False) -> float:
    """Compute F1 of precision LCS/|predicted| and recall LCS/|wanted|, in words, which ``stem`` takes the endings off.

    >>> round(rouge_l("the cat sat", "the cat sat on the mat"), 4)
    0.6667
    """
    guess, truth = (_stems(_words(text)) if stem else _words(text) for text in (predicted, wanted))
    common = lcs_length(guess, truth)
    return 2 * common / (len(guess) + len(truth)) if common else 0.0


def lcs_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Compute the length of the longest common subsequence.

    Bit i of ``row`` is 0 where the length grows at the i-th item of ``one`` (after the items of ``other``
    that have been seen).
    """
    places: dict[str, int] = {}
    for n, item in enumerate(one):
        places[item] = places.get(item, 0) | 1 << n
    everything = (1 << len(one)) - 1
    row = everything
    for item in other:
        hit = row & places.get(item, 0)
        row = (row + hit | row - hit) & everything
    return len(one) - row.bit_count()


def _stems(words: Sequence[str]) -> list[str]:
    from nltk.stem.porter import PorterStemmer

    stemmer = PorterStemmer()
    return [stemmer.stem(word) if len(word) > 3 else word for word in words]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
