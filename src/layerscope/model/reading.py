"""Threads that bring a block's weights from the disk into the page cache while the block before it computes."""

import threading
from collections.abc import Iterator, Mapping, Sequence

from layerscope.model.tensor_files import Piece, TensorFiles

READERS = 2
"""Threads that read at once: one request at a time leaves most disks waiting for the next."""


class ReadAhead:
    """Reads one block ahead, and lets go of the blocks behind where the page cache is too small for all of them.

    A reader reads a piece at a time into the pages that the weights are mapped from, so what computes afterwards finds
    them there and nothing is copied. It holds no memory of its own.
    """

    def __init__(self, checkpoint: TensorFiles) -> None:
        """Of a checkpoint."""
        self._checkpoint = checkpoint
        self._names: Mapping[int, Sequence[str]] = {}
        self._threads: list[threading.Thread] = []
        self._reading: int | None = None
        self._broken_off = threading.Event()
        self._error: Exception | None = None
        self._drop = False

    def begin(self, names: Mapping[int, Sequence[str]], *, drop: bool) -> None:
        """Start a pass.

        Args:
            names: tensors dealt out to the blocks in the order of their computing.
            drop: whether blocks that were computed shall leave the page cache.
        """
        self._names, self._drop = names, drop

    def enter(self, block: int) -> None:
        """Return when a block's weights are at hand; those of the next one are being read from then on.

        Raises:
            CheckpointError: a file has been cut short since it was opened.
            OSError: the disk cannot be read.
        """
        if self._reading != block:
            self.stop()
            self._start(block)
        self.wait()
        self._start(block + 1)

    def leave(self, block: int) -> None:
        """A block has computed."""
        if self._drop:
            self._checkpoint.let_go(self._names.get(block, ()))

    def wait(self) -> None:
        """Until what was begun is read.

        Raises:
            CheckpointError: a file has been cut short since it was opened.
            OSError: the disk cannot be read.
        """
        self._join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def stop(self) -> None:
        """Break off what is being read, and leave no thread behind."""
        self._broken_off.set()
        self._join()
        self._error = None

    def _join(self) -> None:
        while self._threads:
            self._threads[-1].join()
            self._threads.pop()
        self._reading = None

    def _start(self, block: int) -> None:
        pieces = list(self._checkpoint.pieces(self._names.get(block, ())))
        self._broken_off.clear()
        self._reading = block
        waiting, taking = iter(pieces), threading.Lock()
        for _ in range(min(READERS, len(pieces))):
            thread = threading.Thread(target=self._read, args=(waiting, taking), name="layerscope-reader", daemon=True)
            thread.start()
            self._threads.append(thread)  # one that could not start is not waited for

    def _read(self, waiting: Iterator[Piece], taking: threading.Lock) -> None:
        while not self._broken_off.is_set():
            with taking:
                piece = next(waiting, None)
            if piece is None:
                return
            try:
                piece.bring_in()
            except Exception as error:  # noqa: BLE001 - raised where the block is wanted, in the thread that computes
                self._error = error
                self._broken_off.set()
