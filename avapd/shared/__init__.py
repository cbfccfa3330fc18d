"""Formats and channels that master and workers share. No policy."""
