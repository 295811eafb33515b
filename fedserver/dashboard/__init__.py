"""The live page: what it is made of, who may see it, and its figures."""
