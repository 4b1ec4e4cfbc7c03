"""A small package of a user's own, which no worker can import. Tests put its parent folder on the path."""
