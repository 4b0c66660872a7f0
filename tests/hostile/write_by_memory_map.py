"""Changes setup.py through a shared memory map."""

import mmap

with open(f"{project}/setup.py", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    memory[:1] = b"#"
