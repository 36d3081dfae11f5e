"""The dialect of shipped Firefox for desktop, iOS and Android, which send their credential with each request."""
