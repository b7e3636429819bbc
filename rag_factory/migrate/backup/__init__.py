"""Backups bound to a revision, and what they are for: restoring one, and rehearsing a migration on one."""
