"""What a run says to people: a page, a model card and the last lines in the terminal, from its files alone.

Neither torch nor flwr is imported in here, and nothing of the client or the server.
"""

from secure_fed.report.headline import headline
from secure_fed.report.model_card import write_model_card
from secure_fed.report.page import write_report

__all__ = ["headline", "write_model_card", "write_report"]
