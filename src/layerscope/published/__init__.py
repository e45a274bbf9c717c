"""Runs in the published format: one folder of CSV tables and JSON, as sweeps have written it since generation B."""
