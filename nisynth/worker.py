"""One task, start to commit: synthesize, judge, encode, put the shard, create the commit.

A worker is a plain object that lives as long as its process; an actor is a worker inside Ray, and the
local executor holds one directly. It loads the teacher once. A lock around the compute lets a second
thread synthesize while the first encodes and uploads.
"""

import hashlib
import os
import socket
import threading
import time
import traceback

import torch

from nisynth.batch import ImageBatch
from nisynth.commits import Commit, Outcome, Receipt, Run
from nisynth.commits.rejected import CANARY, reject
from nisynth.config import RunConfig
from nisynth.device import default_device, device_name
from nisynth.errors import NisynthError, PlanMismatch, Stopped, StorageError, TaskFailure, one_line
from nisynth.identity import versions
from nisynth.plan import make_plan
from nisynth.shards import encode
from nisynth.storage import open_store
from nisynth.synthesis import StepCallback, load_artefacts, make_synthesizer
from nisynth.synthesis.diagnosis import more_classes, what_to_change
from nisynth.synthesis.judgement import Judgement, class_balance, judge
from nisynth.teachers import load_teacher


class Worker:
    """Executes tasks of one run, one at a time per thread; its result is what it commits.

    Raises TeacherError when the teacher cannot be loaded, PlanMismatch when the teacher here gives
    another fingerprint than the driver's.
    """

    def __init__(
        self, config: RunConfig, fingerprint: str, store_url: str, device: str | None = None
    ) -> None:
        torch.set_num_threads(config.execution.cpu_threads)
        self.config = config
        self.device = device or default_device().type
        self.name = f"{socket.gethostname()}/{os.getpid()}"
        self.teacher = load_teacher(config.teacher, self.device)
        artefacts = load_artefacts(config.method, self.teacher)
        plan = make_plan(config, self.teacher.identity, artefacts)
        if plan.fingerprint != fingerprint:
            raise PlanMismatch(
                f"worker {self.name}: plans fingerprint {plan.fp12}, the driver {fingerprint[:12]};"
                " the weights of teacher or rival differ between the two machines, or their nisynth does"
            )
        self.plan = plan
        self.run = Run(open_store(store_url, single_writer=config.execution.single_writer), plan)
        self.synthesizer = make_synthesizer(
            config.method,
            config.engine,
            self.teacher,
            log_every=config.execution.log_every,
            artefacts=artefacts,
        )
        self._compute, self._telling = threading.Lock(), threading.Lock()
        self._told_retries = 0

    @property
    def iterations(self) -> int:
        """The iterations of one task."""
        return self.config.method.iterations

    def attempt(self, index: int, attempt: str, on_step: StepCallback | None = None) -> Receipt | TaskFailure:
        """Returns the receipt of one attempt at task `index`, or why it failed; raises nothing but Stopped.

        It looks for another's commit first. Whatever goes wrong is the attempt's failure, also outside of
        the synthesis: nothing that one task does ends a worker that could do the others.
        """
        try:
            return self.committed_before(index, attempt) or self.execute(index, attempt, on_step)
        except Stopped:
            raise
        except TaskFailure as failure:
            return failure
        except StorageError as error:
            return TaskFailure("storage", str(error))
        except Exception as error:
            return TaskFailure("raised", f"task {index}: {one_line(error)}", traceback.format_exc())

    def committed_before(self, index: int, attempt: str) -> Receipt | None:
        """Returns a receipt without seconds for a task that somebody committed, None for an open one.

        A look before the work: what another driver did since the last listing is not done again.
        """
        done = self.run.read(index)
        if done is None:
            return None
        return Receipt(
            index,
            attempt,
            "other",
            done.rows,
            {},
            done.figures,
            self.name,
            store_retries=self._untold_retries(),
        )

    def execute(self, index: int, attempt: str, on_step: StepCallback | None = None) -> Receipt:
        """Returns the receipt of one attempt at task `index`; its seconds begin when compute does.

        attempt: a uuid4 that the driver drew. on_step also gets a call with iteration 0 when the
        compute begins. Raises TaskFailure (`not_finite`, `out_of_memory`, `quality_gate`, `raised`),
        StorageError.
        """
        with self._compute:
            clock, started_at = _Stopwatch(), time.time()
            if on_step is not None:
                on_step(0, {})
            batch, judgement = self._synthesize(index, on_step, clock)
        refused = self._refused(batch, judgement)
        if refused is not None and index != CANARY:
            raise refused
        data = encode(batch, self.config.output, self.teacher.normalization, self.teacher.classes)
        clock.lap("encode")
        try:
            shard = self.run.put_shard(index, attempt, data)
            clock.lap("put")
            commit = self._record(batch, attempt, shard, data, judgement, clock, started_at)
            if refused is not None:
                reject(self.run, commit, str(refused))
        except StorageError:
            if refused is None:
                raise
            # What a person needs to hear is why the canary was refused, not that its images were not stored.
        if refused is not None:
            raise refused
        if self.config.execution.single_writer:
            return self._receipt(commit, "unknown", clock, commit)
        outcome = self.run.commit(commit)
        clock.lap("commit")
        return self._receipt(commit, outcome, clock)

    def _synthesize(
        self, index: int, on_step: StepCallback | None, clock: "_Stopwatch"
    ) -> tuple[ImageBatch, Judgement]:
        """Returns the batch of a task, and the teacher's judgement of its decoded images."""
        try:
            batch = self.synthesizer.synthesize(self.plan[index], on_step)
            clock.lap("synthesize")
            images, labels = batch.committed_part
            pixels = self.teacher.normalization.to_pixels(images, self.config.output.pixels)
            judgement = judge(self.teacher, pixels, labels)
        except NisynthError:
            raise
        except Exception as error:  # anyone's network runs in there, and may raise anything
            raise TaskFailure("raised", f"task {index}: {one_line(error)}", traceback.format_exc()) from error
        clock.lap("judge")
        return batch, judgement

    def _refused(self, batch: ImageBatch, judgement: Judgement) -> TaskFailure | None:
        gate = self.config.execution.quality_gate
        if self.plan.observes_labels:
            balance = class_balance(batch.labels, self.teacher.num_classes)
            if balance >= gate:
                return None
            return TaskFailure(
                "quality_gate",
                f"task {batch.task.index}: its observed labels have {balance:.1%} of the entropy of balanced"
                f" classes, under execution.quality_gate {gate:.1%}; {more_classes(self.config.method)}, or"
                " lower the gate",
            )
        if judgement.teacher_accuracy >= gate:
            return None
        cure = what_to_change(batch.curve, judgement, self.teacher.num_classes, self.config.method)
        return TaskFailure(
            "quality_gate",
            f"task {batch.task.index}: the teacher recognises {judgement.teacher_accuracy:.1%} of the decoded"
            f" images, under execution.quality_gate {gate:.1%}; {cure}",
        )

    def _record(
        self,
        batch: ImageBatch,
        attempt: str,
        shard: str,
        data: bytes,
        judgement: Judgement,
        clock: "_Stopwatch",
        started_at: float,
    ) -> Commit:
        figures = {**batch.figures, **judgement._asdict()}
        if self.plan.observes_labels:
            figures["class_balance"] = class_balance(batch.labels, self.teacher.num_classes)
        if self.synthesizer.notes:  # what the engine could not do on this machine
            figures["engine_notes"] = list(self.synthesizer.notes)
        timings_s = clock.laps
        return Commit(
            task=batch.task.index,
            attempt=attempt,
            shard=shard,
            bytes=len(data),
            rows=batch.task.rows,
            sha256=hashlib.sha256(data).hexdigest(),
            seed=batch.task.seed,
            fingerprint=self.plan.fingerprint,
            curve=batch.curve,
            figures=figures,
            timings_s={stage: round(seconds, 6) for stage, seconds in timings_s.items()},
            device=device_name(torch.device(self.device)),
            versions=versions(),
            worker=self.name,
            started_at=started_at,
            finished_at=time.time(),
        )

    def _receipt(
        self, commit: Commit, outcome: Outcome, clock: "_Stopwatch", record: Commit | None = None
    ) -> Receipt:
        return Receipt(
            task=commit.task,
            attempt=commit.attempt,
            outcome=outcome,
            rows=commit.rows,
            seconds=clock.laps,
            figures=commit.figures,
            worker=self.name,
            commit=record,
            store_retries=self._untold_retries(),
        )

    def _untold_retries(self) -> int:
        with self._telling:
            told, self._told_retries = self._told_retries, self.run.store.retries
            return self._told_retries - told


class _Stopwatch:
    """Seconds by stage, each lap since the one before."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = now - self._last
        self._last = now
