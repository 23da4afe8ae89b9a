"""Studies: opened, checked and run, up to the headers of their finished runs."""
