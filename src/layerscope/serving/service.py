"""What the server does for a client, in Python: looks, differences and probes, each a job of the computing thread."""

import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerscope.errors import SuiteError
from layerscope.looking.difference import difference, difference_as_json
from layerscope.looking.look import Look
from layerscope.looking.make import LookPlan, looks
from layerscope.looking.options import LookOptions
from layerscope.looking.probed import probed
from layerscope.model.causal_lm import CausalLM
from layerscope.probing.opening import lens_names
from layerscope.run_folder import default_folder_name
from layerscope.serving.errors import RequestError
from layerscope.serving.jobs import Job, JobObserver, JobQueue
from layerscope.serving.limits import MOST_LISTED, MOST_WORDS
from layerscope.serving.models import OpenModels
from layerscope.serving.options import Limits, ServeOptions
from layerscope.serving.page_data import page_data
from layerscope.serving.records import LookRecord, Records, as_json
from layerscope.serving.schemas import LookAsked
from layerscope.serving.worker import Worker
from layerscope.view.page.view import write_view

WARM_UP_TEXT = "The capital of Germany is called Berlin."


class Service:
    """Models, a queue, what is kept, and the thread that computes."""

    def __init__(self, models: OpenModels, options: ServeOptions, limits: Limits) -> None:
        self.models, self.options, self.limits = models, options, limits
        self.queue = JobQueue(limits.queued)
        self.records = Records(limits)
        models.when_closed(self.records.let_go)
        self._worker = Worker(self.queue)

    def start(self) -> None:
        """Begin to compute; the first job loads what the first look would otherwise wait for."""
        self._worker.start()
        self.queue.submit(Job(self._warm_up))

    def close(self) -> None:
        """Cancel everything; what runs ends at its next step."""
        self.queue.close()

    def join(self) -> None:
        """Wait until nothing is computed any more."""
        self._worker.join()

    def look(self, asked: LookAsked, *, known: bool = True) -> LookRecord:
        """Ask for a look.

        Args:
            known: whether a client will have its id; where not, it is cancelled once nobody waits for it.

        Raises:
            RequestError: what can be seen to be wrong at once, or too much is asked for already.
        """
        self._check(asked)
        job = Job(lambda observer: self._look(record, observer), session=asked.session, known=known)
        record = LookRecord(asked, job)
        self.records.add(record)
        self._submit(job, lambda: self.records.remove(record), supersede=asked.supersede)
        return record

    def difference(self, a: str, b: str) -> Job:
        """Ask for the difference of two finished looks; the job's result is what JSON takes.

        Raises:
            RequestError: one is not there, or too much is asked for already.
        """
        sides = self.records.finished(a), self.records.finished(b)
        job = Job(lambda observer: self._difference(*sides, observer), known=False)
        self.queue.submit(job)
        return job

    def run(self, look_id: str) -> Job:
        """Ask for a probe of a finished look's text; one that is there or under way is not made again.

        Raises:
            RequestError: there is no such look, or too much is asked for already.
        """
        record = self.records.finished(look_id)
        if record.run is None or record.run.failure is not None:
            job = record.run = Job(lambda observer: self._run(record, observer))

            def undo() -> None:
                record.run = None

            self._submit(job, undo)
        return record.run

    def _submit(self, job: Job, undo: Callable[[], None], *, supersede: bool = False) -> None:
        try:
            self.queue.submit(job, supersede=supersede)
        except RequestError:
            undo()
            raise

    def _check(self, asked: LookAsked) -> None:
        """Refuse at once what needs no model to be refused.

        Raises:
            RequestError: a model or lens that is not here, or words and layers that no look could be made of.
        """
        served = self.models.named(asked.model)
        unknown = [name for name in lens_names(asked.lenses) if name not in served.lenses]
        if unknown:
            raise RequestError(
                f"There is no lens '{unknown[0]}' for {served.name}; choose from {', '.join(served.lenses)}."
            )
        if isinstance(asked.track, str) and asked.track.count(",") >= MOST_WORDS:
            raise RequestError(f"A look follows at most {MOST_WORDS} words besides the answer; leave some out.")
        if asked.system is not None and not asked.chat:
            raise RequestError("A system message belongs to a chat; send chat: true with it.")

    def _look(self, record: LookRecord, observer: JobObserver) -> None:
        asked = record.asked
        model = self.models.of(asked.model, observer.opening)
        record.made(self._made(model, asked, observer))
        self.records.trim()

    def _made(self, model: CausalLM, asked: LookAsked, observer: JobObserver) -> Look:
        """The look.

        Raises:
            LayerscopeError: whatever cannot be done.
        """
        self._check_tokens(len(model.tokens.context_ids(asked.text)))  # before words are sought in it again and again
        plan = LookPlan(model, [asked.text], look_options(asked, self.options))
        (encoded,) = plan.encoded
        self._check_tokens(len(encoded.token_ids))
        n_listed = len(plan.lenses) * len(plan.layers) * len(encoded.positions) * plan.top
        if n_listed > MOST_LISTED:
            raise RequestError(
                f"A look lists at most {MOST_LISTED:,} tokens altogether, but this one would list {n_listed:,}; ask "
                "for fewer positions, layers or lenses, or a smaller top."
            )
        (found,) = (look for part in plan.parts for look in plan.looks(part, observer))
        return found

    def _check_tokens(self, n: int) -> None:
        if n > self.options.max_tokens:
            raise SuiteError(
                f"The text has {n:,} tokens, but this server takes at most {self.options.max_tokens:,}; shorten it, or "
                "start the server with a larger --max-tokens."
            )

    def _difference(self, a: LookRecord, b: LookRecord, observer: JobObserver) -> dict[str, Any]:
        return difference_as_json(difference(*(self._still_open(side, observer) for side in (a, b))))

    def _still_open(self, record: LookRecord, observer: JobObserver) -> Look:
        """The look itself, made again where its model was closed since."""
        if record.look is None:
            self._look(record, observer)
        if (found := record.look) is None:
            raise RequestError("The look is no longer kept; ask for it again.", status=404)
        return found

    def _run(self, record: LookRecord, observer: JobObserver) -> bytes:
        """The zipped folder of a run, with its page."""
        asked = record.asked
        model = self.models.of(asked.model, observer.opening)
        run = probed(model, [asked.text], look_options(asked, self.options), observer)
        with tempfile.TemporaryDirectory(prefix="layerscope-") as parent:
            folder = Path(parent) / default_folder_name(run.record)
            run.save(folder)
            write_view([run], folder / "view.html")
            return zipped(folder)

    def _warm_up(self, observer: JobObserver) -> None:
        """One look at every model that is open: weights come from the disk, loops are compiled, libraries loaded."""
        options = LookOptions(answer="Berlin", positions="all", top=20)
        for name in self.models.served:
            if self.models.is_open(name):
                (look,) = looks(self.models.of(name), [WARM_UP_TEXT], options, observer)
                as_json(page_data(look, answered=True, seconds=0.0))


def look_options(asked: LookAsked, options: ServeOptions) -> LookOptions:
    """What was asked for, as `layerscope.look` takes it for a model that is open."""
    names = {"chat", "system", "answer", "lenses", "layers", "positions", "top"}
    return LookOptions(**asked.model_dump(include=names), track=asked.track or None, lens_dir=options.lens_dir)


def zipped(folder: Path) -> bytes:
    """A folder as a zip archive, under its own name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder.parent).as_posix())
    return buffer.getvalue()
