"""Patching estimated by gradients, for sites and for edges, and the estimates checked by patching."""
