"""A study with human readers: the folder that they get, the key that they do not, and what their answers show."""
