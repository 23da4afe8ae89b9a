"""Scans on disk, from their own formats to the memory-mapped data set that everything else reads.

A data set is a frozen dataclass that is registered as kind "dataset" and has `listing(root) -> Source`: the
task and, cheaply, what there is to read (`datasets.source`). `prepared.writing` writes any of them, and
`prepared.reading` reads what it wrote.
"""
