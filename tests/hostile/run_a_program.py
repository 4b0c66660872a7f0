"""Runs a program."""

import subprocess

subprocess.run(["true"], check=True)
