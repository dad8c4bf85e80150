"""What everybody in a run knows: configuration, who owns what, phases, slices, weights and privacy plans.

All of it follows from public facts (configuration and roster), so clients and server derive it on their own.
"""
