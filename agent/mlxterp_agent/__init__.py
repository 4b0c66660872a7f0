"""The command `autointerp`: processes, time, money and git. It imports the contract and never mlx."""
