"""Running a service: its apps and their frame, its settings, and its background work."""
