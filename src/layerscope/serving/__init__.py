"""Serving looks: a local web server whose page and programs ask what a model's layers would say."""
