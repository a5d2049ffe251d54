"""The one door in and out of AnnData and SpatialData, and the checks of what users give."""
