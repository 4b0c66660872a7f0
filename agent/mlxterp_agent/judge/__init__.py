"""From what a run measured to the evidence that the keep rule decides on."""
