"""The plan: what the pending revisions would lock, rewrite and cost on the database as it is."""
