"""What the commands of the package show, and how they end."""
