"""The leaderboard: an entry for each model, data set and threat, and the page that ranks them."""
