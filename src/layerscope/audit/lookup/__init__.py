"""Where the value that a claim is about stands in the files of a run."""
