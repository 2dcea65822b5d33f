"""What every test run begins with."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell: programs that the tests start would inherit it and never hear Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
