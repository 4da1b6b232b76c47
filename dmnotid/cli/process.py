"""What the process of any command goes by: its exit status, and how it imports."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

EXIT_OK: Final = 0
EXIT_PROBLEM: Final = 1
EXIT_INTERRUPTED: Final = 128 + 2


@contextmanager
def no_rubbish() -> Iterator[None]:
    """Import without looking for rubbish, nor later in what was imported: it stays to the end, and it is a lot."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
