"""What a lookup does inside: from packed commands to the values of a vector."""
