"""H&E as arrays: files, resolutions, tissue, stain, areas of spots."""
