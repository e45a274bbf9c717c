"""What people look at: one page, and charts."""
