"""Play Integrity: Google's verdict on an install of an Android app, asked for and checked."""
