"""Pictures of volumes, for reports, notebooks and the screen."""
