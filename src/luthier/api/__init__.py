"""What `import luthier` offers: the commands as functions, their results as objects, and the loop's own step."""
