"""Reproductions: the findings of a paper as claims that were written down beforehand, run, judged, and kept."""
