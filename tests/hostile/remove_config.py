"""Removes the configuration, so that the defaults hold."""

import os

os.unlink(f"{project}/.autointerp/config.json")
