"""Intervals, tests, corrections, sequential evidence; numpy only. Every interval comes from here."""
