"""Sweeps: a grid, list or search of runs over worker processes, its results, its page and the price of tuning."""
