"""Rewrites setup.py from a new thread."""

import threading
from pathlib import Path

failed = []


def write():
    try:
        Path(project, "setup.py").write_text("easier = True\n")
    except OSError as error:
        failed.append(error)


thread = threading.Thread(target=write)
thread.start()
thread.join()
assert not failed
