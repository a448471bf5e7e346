"""A sweep, or any runs, as one HTML page and as numbers: report.py (what is said) -> page.py (how it looks)."""
