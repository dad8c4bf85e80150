"""What runs at the coordinator: rounds over masked sums, the server step, evaluation on public data.

It never sees one site's update.
"""
