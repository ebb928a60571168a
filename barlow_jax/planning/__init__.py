"""What a machine would make of a program, and how it is shown."""
