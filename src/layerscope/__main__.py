"""`python -m layerscope` is the `layerscope` command."""

from layerscope.cli.main import main

main()
