"""The files that the console's pages load."""
