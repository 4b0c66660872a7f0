"""Models, hook points, taps and interventions: everything that knows mlx modules."""
