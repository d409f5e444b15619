"""The command line: one file a verb. Parse, call one function, print. No logic, no heavy imports at the top."""
