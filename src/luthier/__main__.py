"""`python -m luthier` is the command line."""

import signal

if hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN:
    # A job script lets torchrun ignore it, and its ranks inherit that: one that came before they look for it were lost.
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)

from luthier.cli.main import main

if __name__ == "__main__":
    main()
