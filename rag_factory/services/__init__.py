"""What the application calls."""
