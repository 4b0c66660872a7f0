"""Opens the memory of another process."""

with open(f"/proc/{victim}/mem", "rb"):
    pass
