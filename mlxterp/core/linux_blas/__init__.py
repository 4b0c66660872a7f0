"""A fast BLAS and a fast SwiGLU for MLX on Linux CPUs."""
