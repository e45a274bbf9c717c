"""A run written as files in the published format."""
