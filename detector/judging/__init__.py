"""What a detector says of images: scores, probabilities, verdicts, heatmaps, and how good it is."""
