"""File formats, read and written; layouts of folders, the choices of `--format`, are in `data.datasets`."""
