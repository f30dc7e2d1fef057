"""The commands of the `clipkit` program, one file for each kind of work."""
