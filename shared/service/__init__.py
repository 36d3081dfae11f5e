"""Running a service: its apps and their frame, its settings, and the work beside the requests."""
