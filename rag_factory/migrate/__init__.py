"""Schema change: the history of revisions, the state of a database, and the way between them."""
