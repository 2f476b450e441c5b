"""The project: `science` is the team's, everything beside it comes from the template and is updated with it."""
