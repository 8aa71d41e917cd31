"""How a detector comes to be: the images it sees, the recipes, and its first evaluation."""
