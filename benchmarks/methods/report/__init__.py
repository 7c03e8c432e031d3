"""docs/results.md, its plots and its pictures, from the folders of the runs alone."""
