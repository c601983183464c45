"""What stands behind the command line, one command per file; `ntkprefix.cli` imports the one that runs."""
