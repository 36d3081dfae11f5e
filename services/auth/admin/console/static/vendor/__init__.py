"""Pico CSS 2.1.1 (https://picocss.com, MIT), as published, with its licence."""
