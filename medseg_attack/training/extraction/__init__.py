"""A student that learns from the answers of a victim to a counted number of queries, and never from a true mask."""
