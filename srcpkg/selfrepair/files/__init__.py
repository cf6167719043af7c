"""The formats of all results, and how damage is noticed."""
