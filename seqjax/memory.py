"""What the C library does with freed memory."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep large arrays it has freed, for the next ones. On Linux with glibc; elsewhere nothing.

    A compiled step on a CPU takes its temporary memory in one piece. From 32 MB on, glibc gets such a piece from the
    system every time, page by page, and gives it back: a quarter of the step of a small Transformer.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, LARGEST)
