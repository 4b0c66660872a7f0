"""Intervals, tests, corrections and sequential evidence. numpy only; every interval of the project comes from here."""
