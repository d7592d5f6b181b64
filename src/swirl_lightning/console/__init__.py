"""Options, help and endings of the commands of the package."""
