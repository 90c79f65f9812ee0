"""Sources, sinks and transforms that come with the package."""
