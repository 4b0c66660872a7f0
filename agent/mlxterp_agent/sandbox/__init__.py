"""One experiment in a child process: its warden, its pipes, its limits, and what it reports."""
