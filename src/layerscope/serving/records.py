"""Looks that were asked for, with what came of them; the finished ones are kept as long as there is room."""

import json
import threading
from collections import OrderedDict
from typing import Any

from layerscope.looking.look import Look
from layerscope.model.causal_lm import CausalLM
from layerscope.serving.errors import RequestError
from layerscope.serving.grid_csv import grid_csv
from layerscope.serving.jobs import Job, State
from layerscope.serving.options import Limits
from layerscope.serving.page_data import page_data
from layerscope.serving.schemas import LookAsked

FORMS = ("look", "page", "csv")
"""In which a look is told."""


class LookRecord:
    """A look that was asked for."""

    def __init__(self, asked: LookAsked, job: Job) -> None:
        self.asked, self.job = asked, job
        self.run: Job | None = None
        """The probe of its text, once one was asked for; its result is the zipped run folder."""
        self._look: Look | None = None
        self._told: dict[str, bytes] = {}

    @property
    def look(self) -> Look | None:
        """None until it is made, and once its model was closed."""
        return self._look

    def made(self, look: Look) -> None:
        """The look is there."""
        self._look = look

    def told(self, form: str) -> bytes:
        """A finished look as JSON (`look`, `page`) or as CSV."""
        look = self._look  # another thread may let go of it meanwhile
        return self._told[form] if look is None else self._tell(look, form)

    def let_go(self) -> None:
        """Keep what is told of the look in place of itself, which holds its model."""
        if self._look is not None:
            self._told = {form: self._tell(self._look, form) for form in FORMS}
            self._look = None

    def _tell(self, look: Look, form: str) -> bytes:
        if form == "csv":
            return grid_csv(look)
        if form == "look":
            return as_json(look.to_dict())
        answered = self.asked.answer is not None
        return as_json(page_data(look, answered=answered, seconds=self.job.seconds or 0.0))

    @property
    def n_bytes(self) -> int:
        """Memory that it takes, about."""
        run = self.run.result if self.run is not None else None
        total = sum(map(len, self._told.values())) + (0 if run is None else len(run))
        look = self._look
        if look is not None:
            arrays = [look.top_ids, look.top_tokens, look.top_probs, look.entropy_bits, look.kl_to_final_bits]
            arrays += [array for tracked in look.tracked for array in (tracked.rank, tracked.log_prob)]
            total += look.residuals.nbytes + sum(array.nbytes for array in arrays)
        return total

    @property
    def is_busy(self) -> bool:
        """Whether there is still something to come of it; a look that is there has only its job to end."""
        probing = self.run is not None and not self.run.state.is_final
        return probing or (self._look is None and not self.job.state.is_final)


class Records:
    """Looks by id; of the finished ones those that were asked for last."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._records: OrderedDict[str, LookRecord] = OrderedDict()

    def add(self, record: LookRecord) -> None:
        """Keep a look."""
        with self._lock:
            self._records[record.job.id] = record
        self.trim()

    def remove(self, record: LookRecord) -> None:
        """Forget a look that was never taken on."""
        with self._lock:
            self._records.pop(record.job.id, None)

    def of(self, look_id: str) -> LookRecord:
        """The look of that id.

        Raises:
            RequestError: there is none, or no longer.
        """
        with self._lock:
            record = self._records.get(look_id)
            if record is None:
                raise RequestError(
                    "There is no look of that id, or it is no longer kept; ask for it again.", status=404
                )
            self._records.move_to_end(look_id)
            return record

    def finished(self, look_id: str) -> LookRecord:
        """The same of one that is done.

        Raises:
            RequestError: it is not done, or never will be.
        """
        record = self.of(look_id)
        if (failure := record.job.failure) is not None:
            raise RequestError(failure.sentence, status=failure.status)
        if record.job.state is not State.DONE:
            raise RequestError(f"The look is {record.job.state}; ask again when it is done.", status=409)
        return record

    def trim(self) -> None:
        """Forget the finished looks that were not asked for the longest, as far as there is no room for them."""
        with self._lock:
            idle = [record for record in self._records.values() if not record.is_busy]
            count, n_bytes = len(idle), sum(record.n_bytes for record in idle)
            for record in idle[:-1]:  # the newest one stays, whatever it takes
                if count <= self._limits.kept and n_bytes <= self._limits.kept_bytes:
                    break
                count, n_bytes = count - 1, n_bytes - record.n_bytes
                del self._records[record.job.id]

    def let_go(self, model: CausalLM) -> None:
        """Keep of the looks at a model only what is told of them: it is being closed."""
        with self._lock:
            records = list(self._records.values())
        for record in records:
            if record.look is not None and record.look.model is model:
                record.let_go()


def as_json(value: Any) -> bytes:
    """JSON as it is sent.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
