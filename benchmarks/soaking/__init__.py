"""Parts of the soak test: the plans it sends, what is done to them, what it looks at."""
