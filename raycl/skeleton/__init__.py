"""The skeleton of a method of the user's own: files, and what writes them."""
