"""A whole study: its stages, their order and progress, the report."""
