"""Scans on disk, from their own formats to the memory-mapped data set that everything else reads.

A data set is a frozen dataclass that is registered as kind "dataset" and has `listing(root) -> Source`: the
task and, cheaply, what there is to read (`source.py`). `prepare.py` writes any of them, `prepared.py` reads
what it wrote.
"""
