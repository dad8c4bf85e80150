"""What runs at a site: its home folder, its policy gate, and its part of one round.

Only masked vectors, signatures and fixed error codes leave a site.
"""
