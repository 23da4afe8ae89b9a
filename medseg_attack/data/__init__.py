"""Readers of data sets, and the prepared data set that all else reads: see `prepared.Source` for what a reader must provide."""
