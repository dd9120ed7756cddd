"""Other programs' folders: what they read is written, what they write is read."""
