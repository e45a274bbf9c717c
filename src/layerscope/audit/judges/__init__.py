"""What each kind of claim is compared with."""
