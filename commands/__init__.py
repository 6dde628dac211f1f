"""Command groups of the command line, one file each; they import what they call when called."""
