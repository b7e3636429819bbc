"""Look inside a database: who waits for whom, what is wrong with it, and a picture of its schema."""
