"""The command line: words to one call each; results to stdout, progress to stderr."""
