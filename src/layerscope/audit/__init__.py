"""Audits of Markdown reports against the files that they cite."""
