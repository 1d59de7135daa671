"""What a training set does inside: labels and rows of the past, joined in bounded memory."""
