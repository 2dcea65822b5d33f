"""Products by name and version: each is a policy of this package with the product's own constants.

What a product does beside admission, and what was left out here, its docstring says.
"""
