"""The page in Chromium: benchmarks/browser.py, which takes the pictures of the documentation as well. Needs
selenium."""

from benchmarks.browser import Page

__all__ = ["Page"]
