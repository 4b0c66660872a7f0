"""Appends to the configuration of the investigation."""

from pathlib import Path

with Path(project, ".autointerp/config.json").open("a") as config:
    config.write(" ")
