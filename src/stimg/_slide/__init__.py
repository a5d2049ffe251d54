"""A slide's expression as arrays: lattice, windows, genes."""
