"""How every figure looks, so that a quantity has one colour and a model one marker throughout.

A figure module decides what is shown; whatever the looks of two figures share is decided here. Figures are built on
`matplotlib.figure.Figure` without pyplot: no global state, no backend. Each figure imports the modules that it uses, and is
stale by an edit of these alone.
"""
