"""The robustness card of a model: two pages that a reviewer can read, and what the documents behind them ask for."""
