"""What a run says to people: pages, a model card and the last lines in the terminal, from its files alone.

Neither torch nor flwr is imported in here, and nothing of the client or the server.
"""

from secure_fed.report.epsilon_report import write_epsilon_report
from secure_fed.report.epsilon_sources import is_run
from secure_fed.report.headline import headline
from secure_fed.report.model_card import write_model_card
from secure_fed.report.page import write_report

__all__ = ["headline", "is_run", "write_epsilon_report", "write_model_card", "write_report"]
