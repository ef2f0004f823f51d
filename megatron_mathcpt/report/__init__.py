"""Tables, plots and one self-contained page from the result files of a grid of runs alone.

In reading order: `read`, `comparison`, `study`, `results`, `graph`, `page`, `figures`.
"""
