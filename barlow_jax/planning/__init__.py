"""What a machine would make of a program."""
