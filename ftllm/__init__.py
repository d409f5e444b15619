"""Local fine-tuning of reasoning models: train, export, chat, push."""

__version__ = "0.1.0"
