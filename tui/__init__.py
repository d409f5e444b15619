"""The Textual application: a screen over the events of `ftllm.chat`."""
