"""Batches that the Trainer's limits leave, checked before a base loads: Lightning does so when the epoch begins."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


def within(trainer: Trainer | None, option: str, batches: int, of: str) -> int:
    """Return the batches that a limit leaves.

    Args:
        trainer: has the limit; None leaves all.
        option: its name, such as ``limit_train_batches``.
        batches: how many there are.
        of: what they are batches of, in words.

    Raises:
        ValueError: the limit is a share which leaves none.
    """
    limit = getattr(trainer, option, None)
    if limit is None or isinstance(limit, int):
        return batches if limit is None else min(batches, limit)
    if limit and not int(batches * limit):
        raise ValueError(
            f"trainer.{option} {limit} leaves none of the {batches} batches in {of}: raise it, or give a number of "
            "batches"
        )
    return int(batches * limit)


def check_val_interval(trainer: Trainer, batches: int, of: str) -> None:
    """Check ``val_check_interval`` against an epoch; warn where it leaves out the end, of which results have a row.

    Raises:
        ValueError: it is a number of batches that the epoch does not have.
    """
    if trainer.limit_val_batches == 0:
        return
    interval = getattr(trainer, "val_check_interval", None)  # Lightning sets none for a time
    if isinstance(interval, int) and trainer.check_val_every_n_epoch is not None and interval > batches:
        raise ValueError(
            f"trainer.val_check_interval {interval} is more than the {batches} batches in {of}: lower it, give a share "
            "of an epoch (a float up to 1.0), or set trainer.check_val_every_n_epoch to null"
        )
    if interval is None or trainer.check_val_every_n_epoch != 1:
        rank_zero_warn(
            "trainer.check_val_every_n_epoch and val_check_interval give no validation at the end of some phases: "
            "results.json gets no row of those. Leave the former at 1 and the latter at a share or a number of batches"
        )
        return
    every = max(1, int(batches * interval)) if isinstance(interval, float) else interval  # as Lightning counts
    if batches % every:
        rank_zero_warn(
            f"trainer.val_check_interval {interval} of {batches} batches in {of} gives no validation at its end: "
            "results.json gets no row then. Choose an interval that divides the number of batches"
        )
