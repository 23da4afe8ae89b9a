"""Goals: the segmentation that an attacker wants, and when it counts as reached."""
