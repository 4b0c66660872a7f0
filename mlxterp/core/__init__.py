"""Models, hook points, taps and interventions: everything that knows mlx modules.

Importing this package loads mlx and, on Linux, gives it a fast BLAS (`blas.py`).
"""

import mlx.core

from mlxterp.core.linux_blas import blas

blas.install()

__all__ = ["blas", "mlx"]
