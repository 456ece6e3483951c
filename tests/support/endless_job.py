"""A job that does nothing until it is told to stop, for tests of what runs jobs."""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("· stopping"))
    print("· running", flush=True)
    signal.pause()
