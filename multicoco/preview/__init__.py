"""`multicoco data`: what a run will be trained and asked on, before it costs anything."""

from multicoco.preview.page import preview

__all__ = ["preview"]
