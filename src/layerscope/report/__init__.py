"""A record, for people; no tensor library here."""
