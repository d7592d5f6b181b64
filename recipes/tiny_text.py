"""Words of the tiny world, and the tokenizer trained on them."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from swirl_lightning.benchmarks.minigrid.tiles import CELLS, COLOURS, GRID, OBJECTS

MOST_IDS = 640
"""Upper limit of the vocabulary, which is not reached: merging stops when every word is one id."""
SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<boi>", "<eoi>")


def place(index: int, grid: int) -> str:
    """Write the place of a cell of a (grid, grid) scene in words, counted from 1: ``row 2 column 3``."""
    return f"row {index // grid + 1} column {index % grid + 1}"


def commands() -> list[str]:
    """Return the sentences that name actions; the base is trained on them as text alone, never beside frames."""
    found = ["turn left", "turn right", "move forward"]
    for colour in COLOURS:
        found += [f"{verb} the {colour} {thing}" for verb in ("pick up", "drop") for thing in OBJECTS]
        found += [f"{verb} the {colour} door" for verb in ("open", "close", "unlock")]
    return found


def sentences(grid: int) -> Iterator[str]:
    """Return the sentences that the tokenizer is trained on, for frames of (grid, grid) cells."""
    fixed = (
        *("Before: ", "\nAfter: ", "\nAction: ", "\nChanged: ", "\nHow many cells changed? ", "Frame: "),
        *("One: ", "\nTwo: ", "\nEdit: ", "\nObjects: ", "\nAhead of the agent: ", "\nCopy: ", "\nDraw: "),
        *("\nWhere is the agent? ", "\nLook: ", "the agent faces left", "the agent stands at row 1 column 1"),
        *("remove the red key at row 3 column 2; put red box at row 4 column 5", "clear row 6 column 6"),
        *("nothing", "walls all around", "the red door at row 1 column 4 is locked", "same", "different"),
    )
    for _ in range(4):
        yield from fixed
        yield from commands()
        for index in range(grid * grid):
            one, two = (CELLS[(2 * index + i) % len(CELLS)].name for i in (0, 1))
            yield f"{place(index, grid)}: {one} to {two}; "
        for cell in CELLS:
            yield cell.name
            yield f" {cell.name};"


def build_tokenizer(grid: int = GRID) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which restores any text exactly, on the words of frames of (grid, grid) cells."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MOST_IDS,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(sentences(grid)), trainer)
    pad, eos, bos, unk, boi, eoi = SPECIALS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        bos_token=bos,
        unk_token=unk,
        additional_special_tokens=[boi, eoi],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
