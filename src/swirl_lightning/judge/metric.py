"""Mean score of a judge, and counts of what it could not score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from swirl_lightning.data.reading import first
from swirl_lightning.judge import Judge, JudgeAnswer
from swirl_lightning.judge.endpoint import Refused
from swirl_lightning.metrics.category_means import CategoryMeans
from swirl_lightning.transition import State, Transition

_MANY = 8  # refusals, and no answer, after which a test stops


class JudgeScore(CategoryMeans):
    """Mean score of a judge, which is asked in the background while predictions go on.

    - ``judge``: mean over answers that could be read, and by category. A missing prediction has the lowest
      score: it needs no judge.
    - ``judge_asked``, ``judge_unparsable``, ``judge_failed``: rows, answers without a usable score, questions
      without an answer. These are not in the mean; the three counts say how many. A row without a state that the
      template shows is not asked about.
    - ``judge_prompt_tokens``, ``judge_completion_tokens``: used by this run (0 for answers from the cache).

    Args:
        judge: client that asks.
        template: the suite that is judged, or ``action``: see :meth:`swirl_lightning.judge.Judge.template_of`; several
            for a subclass whose :meth:`values` take as many scores.
        categories: see `CategoryMeans`.
        by: see `CategoryMeans`.
        names: of the values.
        kwargs: as for `CategoryMeans`.
    """

    COUNTS = ("asked", "unparsable", "failed", "prompt_tokens", "completion_tokens")
    tally: Tensor

    def __init__(
        self,
        judge: Judge,
        template: str | Sequence[str],
        categories: Sequence[str] = (),
        by: str = "task",
        names: Sequence[str] = ("judge",),
        **kwargs: Any,
    ) -> None:
        super().__init__(names, categories, by, **kwargs)
        self.judge = judge
        self.templates = [judge.template_of(name) for name in ([template] if isinstance(template, str) else template)]
        self.add_state("tally", torch.zeros(len(self.COUNTS), dtype=torch.int64), dist_reduce_fx="sum")
        self._pending: list[tuple[list[Future[JudgeAnswer]], Transition]] = []

    def values(self, scores: Sequence[float | None]) -> list[float | None]:
        """Return the values of a row from the scores of its questions, None where there is none."""
        return list(scores)

    def update(self, predicted: Sequence[State | None], transitions: Sequence[Transition]) -> None:
        """Ask about one predicted state, or action, per transition.

        Raises:
            ValueError: the endpoint has refused many questions and answered none.
        """
        self._check_refusals()
        for state, row in zip(predicted, transitions, strict=True):
            shown = {"before": row.before, "after": row.after, "predicted": state or ""}
            states = [[shown[name] for name in template.states] for template in self.templates]
            if any(each is None for one in states for each in one):  # a template shows y, and it is not known
                continue
            self.tally[0] += 1
            if state is None or state == "":
                self.add([self.values([template.low for template in self.templates])], [row])
                continue
            words = {"action": row.action or "", "predicted": state if isinstance(state, str) else ""}
            light = Transition("", "", row.action, row.id, {self.by: row.meta.get(self.by, "")})
            asked = [
                self.judge.submit(template, [each for each in one if each is not None], **words)
                for template, one in zip(self.templates, states, strict=True)
            ]
            self._pending.append((asked, light))

    def _check_refusals(self) -> None:
        """Raise before more is predicted whose judge will not answer."""
        if self.judge.answers:
            return
        done = [question for asked, _ in self._pending for question in asked if question.done()]
        refused = [error for question in done if isinstance(error := question.exception(), Refused)]
        if len(refused) >= _MANY:
            raise refused[0]

    def _answer(self, question: Future[JudgeAnswer]) -> JudgeAnswer:
        try:
            return question.result()
        except Refused as error:
            if not self.judge.answers:
                raise
            return JudgeAnswer(None, "failed", reason=str(error))  # it does answer others

    def collect(self) -> None:
        """Wait for the answers that are still to come.

        Raises:
            ValueError: the endpoint has refused a question and answered none.
        """
        pending, self._pending = self._pending, []
        wait([question for asked, _ in pending for question in asked])
        reasons: Counter[str] = Counter()
        for asked, row in pending:
            answers = [self._answer(question) for question in asked]
            self.add([self.values([answer.score for answer in answers])], [row])
            for answer in answers:
                if answer.reason:
                    reasons[answer.reason] += 1
                counts = (
                    0,
                    answer.problem == "unparsable",
                    answer.problem == "failed",
                    answer.prompt_tokens,
                    answer.completion_tokens,
                )
                self.tally += torch.tensor([int(count) for count in counts], device=self.tally.device)
        if reasons:
            told = first([f"{count}: {reason}" for reason, count in reasons.most_common()])
            questions = len(pending) * len(self.templates)
            rank_zero_warn(f"the judge gave no answer to {reasons.total()} of {questions} questions:{told}")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Collect all answers before devices exchange their states; runs before every `compute`."""
        self.collect()
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Compute the means and the counts; see the class."""
        counts = {f"judge_{name}": value.float() for name, value in zip(self.COUNTS, self.tally, strict=True)}
        return super().compute() | counts
