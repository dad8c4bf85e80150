"""The Flower app of `flwr run .`: it only names the apps of the installed secure_fed package.

So the bundle that Flower ships holds no code that touches data; what runs at a site is what the site installed.
"""

from secure_fed.engines.flower_app import client_app, server_app

__all__ = ["client_app", "server_app"]
