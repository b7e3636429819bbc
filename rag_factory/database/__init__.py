"""Settings, addresses and connections."""
