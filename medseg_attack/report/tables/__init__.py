"""Tables of attacks on one model, of runs side by side, and of scores. No torch in here."""
