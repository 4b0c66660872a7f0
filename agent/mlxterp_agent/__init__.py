"""The machinery of `autointerp`: processes, time, money and git. It imports the contract and never mlx."""
