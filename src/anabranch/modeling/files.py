"""Model files are written by Rust libraries, which report an error of the operating system as text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

_CODE = re.compile(r"\(os error (\d+)\)")


@contextmanager
def os_errors() -> Iterator[None]:
    """Boundary to safetensors and tokenizers: where they say "(os error 28)", the `OSError` of that number is raised.

    Raises:
        OSError: disk full, no such folder, ...; anything else that is raised inside goes on as it is.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # tokenizers raises bare `Exception`: there is nothing closer to catch
        code = _CODE.search(str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number)) from error
