"""Studies, from what they are about to be run with to the headers of their finished runs."""
