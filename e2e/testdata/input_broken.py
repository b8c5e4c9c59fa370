"""A code location that loads nowhere."""

raise ImportError("no module named 'not_installed_anywhere'")
