"""What a project is made of, and the ways to one: a new folder, this checkout, somebody's own."""
