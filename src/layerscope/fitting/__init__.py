"""What a lens is fitted on, and the fit itself."""
