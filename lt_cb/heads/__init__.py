"""Linear heads on features of a frozen backbone: recipes, solver, cross-validation, and the two commands."""
