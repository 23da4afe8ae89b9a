"""Files that are whole or absent, paths that stay in their folder, and locks between processes."""
