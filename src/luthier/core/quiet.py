"""Messages and progress bars of libraries that a user cannot act on, held back on the command line and in Python."""

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

LEVELS = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY")
"""Variables from which libraries take their level of messages when they are imported."""


def set_environment() -> None:
    """Let the libraries that are imported from now on report errors alone, unless the user chose another level."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else tokenizers warns in every process that is forked
    for name in LEVELS:
        os.environ.setdefault(name, "error")


_lock, _within = threading.Lock(), ExitStack()
_contexts: list[object] = []
"""Those that are open, in whatever threads: the first one changes the libraries, the last one puts them back."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within this context transformers, datasets and the hub's client print nothing.

    What the user had set before is put back at the end, so a notebook keeps its own bars and warnings.
    """
    with _lock:
        if not _contexts:
            _within.enter_context(_quiet())
        _contexts.append(None)
    try:
        yield
    finally:
        with _lock:
            _contexts.pop()
            if not _contexts:
                _within.close()


@contextmanager
def _quiet() -> Iterator[None]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with warnings.catch_warnings():  # of tqdm in a notebook without ipywidgets, which no progress here needs
        warnings.filterwarnings("ignore", "IProgress not found")
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
        from transformers.utils import logging

    level, shown, own = logging.get_verbosity(), not are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    hook = logging.set_tqdm_hook(lambda factory, args, options: logging.EmptyTqdm(*args, **options))
    logging.set_verbosity_error()
    disable_progress_bars()
    datasets: Any = sys.modules.get("datasets")  # importing it takes a second, and few runs need it
    bars = datasets is not None and not datasets.are_progress_bars_disabled()
    if bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_tqdm_hook(hook)
        logging.set_verbosity(level)
        if own:
            logging.enable_progress_bar()
        (enable_progress_bars if shown else disable_progress_bars)()
        if bars:
            datasets.enable_progress_bars()
