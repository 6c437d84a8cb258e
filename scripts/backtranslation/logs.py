"""What every job writes to its log and the terminal: time, progress with rate and time left, and plain sentences on bad input."""

import errno
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

logger = logging.getLogger("backtranslation")
_in_model: list[float] = []
_tokens = {"read": 0, "written": 0}
_terminals: list[TextIO] = []


@contextmanager
def computing() -> Iterator[None]:
    """Count the time spent within as spent in the model, so that `job` can say what starting and loading took."""
    started = time.monotonic()
    try:
        yield
    finally:
        _in_model.append(time.monotonic() - started)


def model_seconds() -> float:
    """Time that this process has spent in model calls and training steps."""
    return sum(_in_model)


def count_tokens(read: int, written: int = 0) -> None:
    """Count tokens that a model has read (prompts, texts, training examples) and written, so that `job` can say how many."""
    _tokens["read"] += read
    _tokens["written"] += written


def plain(error: Exception) -> str | None:
    """What is wrong, in one sentence for the user, who can do something about it; None for a fault of ours.

    ValueErrors are the library's way to speak to the user.
    """
    if isinstance(error, ValueError):
        return str(error)
    # Some libraries put what the system says into errors of their own.
    if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
        return f"the disk is full ({error}); make room and start again: what was done is kept"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.filename}: {error.strerror}; a run must be able to write to results/ and resources/"
    return None


@contextmanager
def job(log: str | Path, online: bool = False) -> Iterator[None]:
    """Send all output of this process to `log`; end with status 1 and one sentence on what the user can mend.

    The hub is off unless the job is there to fetch something (`online`): nodes of a cluster have no network,
    and a client that waits for one takes minutes to give up.

    The sentence goes to the log and the terminal. Any other error keeps its traceback, in the log.
    """
    if not online:
        # Read when huggingface_hub is imported, which no module of ours does before it needs it.
        os.environ["HF_HUB_OFFLINE"] = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    # As stderr itself: names of files may hold bytes that are no text.
    terminal = os.fdopen(os.dup(2), "w", errors="backslashreplace")
    _terminals.append(terminal)
    started = time.monotonic()
    try:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
        logger.setLevel(logging.INFO)
        # Notes of libraries to their developers, which a user can do nothing about.
        warnings.filterwarnings("ignore", category=FutureWarning)
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        yield
    except Exception as error:
        sentence = plain(error)
        if sentence is None:
            raise
        logger.exception("ERROR: %s", sentence)
        print(f"ERROR: {sentence}", file=terminal, flush=True)
        raise SystemExit(1) from error
    inside = f", {model_seconds():.1f} s of it in the model" if _in_model else ""
    counted = f"; {_tokens['read']} tokens read, {_tokens['written']} written" if any(_tokens.values()) else ""
    logger.info("done in %.1f s%s%s", time.monotonic() - started, inside, counted)


def warn(sentence: str) -> None:
    """Say what the user should know, in the log and on the terminal."""
    logger.warning("WARNING: %s", sentence)
    _show(f"WARNING: {sentence}")


def _show(line: str) -> None:
    for terminal in _terminals:
        print(line, file=terminal, flush=True)


class Progress:
    """Logs rows (or steps) done, rate and time left, at most every `every` seconds; the terminal gets a line at most every `shown`."""

    def __init__(self, what: str, total: int, every: float = 5.0, shown: float = 30.0):
        self.what, self.total, self.every, self.shown = what, total, every, shown
        self.done = self.fresh = self.tokens = 0
        self.started = self.last = self.last_shown = time.monotonic()

    def skip(self, rows: int) -> None:
        """Count rows that an earlier, interrupted run finished."""
        self.done += rows

    def add(self, rows: int, tokens: int = 0, note: str = "") -> None:
        """Count rows that were just finished; `note` ends the line if one is due."""
        self.done += rows
        self.fresh += rows
        self.tokens += tokens
        now = time.monotonic()
        if now - self.last < self.every and self.done < self.total:
            return
        self.last = now
        seconds = max(now - self.started, 1e-9)
        left = f"{(self.total - self.done) * seconds / max(self.fresh, 1):.0f} s left"
        rate = f"{self.fresh / seconds:.2f}/s" + (f", {self.tokens / seconds:.0f} tokens/s" if self.tokens else "")
        logger.info("%s: %d of %d, %s, %s%s", self.what, self.done, self.total, rate, left, note)
        # What the first rows take says little, since models begin slowly.
        if now - self.last_shown >= self.shown and 20 * self.fresh >= self.total:
            self.last_shown = now
            _show(f"  {self.what}: {self.done} of {self.total}, {left}")
