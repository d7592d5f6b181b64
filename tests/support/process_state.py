"""What importing a package may not change."""

import logging
import os
import signal
import sys
import warnings

SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


def state() -> tuple[object, ...]:
    """Return variables, warning filters, signal handlers, log handlers and the path."""
    handlers = [signal.getsignal(number) for number in SIGNALS]
    return dict(os.environ), list(warnings.filters), handlers, list(logging.root.handlers), list(sys.path)
