"""The plan of a series: how many tasks each round has, and of every task its seed and labels.

`series.json` holds the document. Everything but the rivals' hashes follows from it, so the labels of a set
are known before its first round is made.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from itertools import accumulate, pairwise
from typing import Any, ClassVar

from nisynth.batch import Task
from nisynth.errors import DataError
from nisynth.identity import fingerprint
from nisynth.plan import Plan
from nisynth.randomness import torch_seed

MAX_ROUNDS = 9999
"""Keys hold the round in 4 digits."""


def round_sizes(num_tasks: int, base: int, growth: float) -> list[int]:
    """Returns the number of tasks of each round: `base`, then `growth` times what there is, at least 1.

    Stops after `MAX_ROUNDS` + 1 rounds, which the caller has to refuse.
    """
    totals, share = [min(num_tasks, base)], Decimal(str(growth))
    while totals[-1] < num_tasks and len(totals) <= MAX_ROUNDS:
        totals.append(min(num_tasks, totals[-1] + max(1, int(share * totals[-1]))))
    return [totals[0], *(after - before for before, after in pairwise(totals))]


class SeriesPlan(Plan):
    """The tasks of all rounds, numbered from 0 to the end of the last one.

    sizes: the number of tasks of each round. first_tasks: the number of each round's first task.
    num_rounds: leave out the rounds behind so many; None for all. Raises DataError as `Plan` does.
    """

    KEY: ClassVar[str] = "series.json"

    def __init__(self, document: Mapping[str, Any], num_rounds: int | None = None) -> None:
        super().__init__(document)
        try:
            recipe = self.identity["series"]
            base, growth = recipe["rounds"]["base"], recipe["rounds"]["growth"]
            if type(base) is not int or base < 1 or not 0 <= growth <= 1e9:
                raise ValueError("base or growth")
            sizes = round_sizes(self.num_tasks, base, growth)
            if len(sizes) > MAX_ROUNDS or not isinstance(recipe["rival"], dict):
                raise ValueError(f"{len(sizes)} rounds")
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise DataError(f"{self.KEY}: not a series of this version ({error!r})") from None
        self.is_whole = num_rounds is None or num_rounds >= len(sizes)
        self.num_rounds_in_all = len(sizes)
        self.sizes = sizes[:num_rounds]
        self.first_tasks = [0, *accumulate(self.sizes[:-1])]
        self.num_images = min(self.num_images, sum(self.sizes) * self.batch_size)
        self._rounds: dict[int, Plan] = {}

    @property
    def shard_files(self) -> str:
        return f"rounds/*/data/*.{self.format}"

    def first_rounds(self, num_rounds: int) -> "SeriesPlan":
        """Returns the plan of the first rounds alone."""
        return SeriesPlan(self.document, num_rounds)

    def place(self, task: int) -> tuple[int, int]:
        """Returns the round that a task belongs to, and its number there."""
        number = bisect_right(self.first_tasks, task) - 1
        return number, task - self.first_tasks[number]

    def round_identity(self, number: int, rival_sha256: str | None) -> dict[str, Any]:
        """Returns what the fingerprint of a round covers. rival_sha256: None for round 0, which has none."""
        whole = {name: value for name, value in self.identity.items() if name != "series"}
        images = min(self.sizes[number] * self.batch_size, self._images_from(number))
        run = {**whole["run"], "num_images": images, "seed": self.round_seed(number)}
        method = dict(whole["method"])
        if rival_sha256 is not None:
            method["rival"] = {**self.identity["series"]["rival"], "weights": rival_sha256}
        return {**whole, "run": run, "method": method}

    def round_seed(self, number: int) -> int:
        """Returns the seed of a round, 0..2^63-1, as `run.seed` allows."""
        return torch_seed(self.seed, "round", number)

    def labels(self, index: int) -> Any:
        number, task = self.place(index)
        return self._round(number).labels(task)

    def _task(self, index: int) -> Task:
        number, task = self.place(index)
        return replace(self._round(number)[task], index=index)

    def _images_from(self, number: int) -> int:
        return int(self.identity["run"]["num_images"]) - self.first_tasks[number] * self.batch_size

    def _round(self, number: int) -> Plan:
        """Returns a plan with a round's seeds and labels, which do not depend on its rival."""
        if number not in self._rounds:
            identity = self.round_identity(number, "" if number else None)
            self._rounds[number] = Plan({"identity": identity, "fingerprint": fingerprint(identity)})
        return self._rounds[number]
