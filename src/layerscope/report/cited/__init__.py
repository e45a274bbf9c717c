"""What every report rests on: files as evidence, claims with citations, documents of claims."""
