"""The kinds of credential that can be exchanged.

One file each; ``_open`` in ``services/auth/app.py`` lists them, ``shared.domain.service_types.Credential`` names them.
"""
