"""What every other part stands on: errors, configurations, files, seeds, devices."""
