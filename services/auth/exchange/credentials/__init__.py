"""The kinds of credential that can be exchanged. One file each; ``build`` in ``app.py`` lists them."""
