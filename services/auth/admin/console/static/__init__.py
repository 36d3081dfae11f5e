"""What the pages of the console load."""
