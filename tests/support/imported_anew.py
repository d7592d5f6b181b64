"""Imports the package a second time, and compares the process before and after. Run by tests/test_contracts.py.

The libraries have been imported: what they change is theirs.
"""

import logging
import os
import signal
import sys
import warnings

from support.process_state import state

FOREIGN = ("PATH", "PYTHONPATH", "HOME")  # variables that are not the package's

if __name__ == "__main__":
    for name in [name for name in sys.modules if name.partition(".")[0] == "swirl_lightning"]:
        del sys.modules[name]
    for name in set(os.environ) - set(FOREIGN):
        del os.environ[name]
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    warnings.resetwarnings()
    logging.root.handlers.clear()
    before = state()
    import swirl_lightning

    for name in swirl_lightning.__all__:
        getattr(swirl_lightning, name)
    assert sum(name.startswith("swirl_lightning.") for name in sys.modules) > 50
    after = state()
    assert after == before, (before, after)
