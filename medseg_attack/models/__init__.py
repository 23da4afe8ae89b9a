"""Networks, from one interface: a [0, 1] image in, log-odds on the same grid out."""
