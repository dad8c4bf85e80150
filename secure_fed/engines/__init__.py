"""How messages travel: the same ServerApp and ClientApp in this process, under Ray, or on SuperNodes.

The only room that imports flwr.
"""
