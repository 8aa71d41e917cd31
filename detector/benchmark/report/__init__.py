"""The report of a benchmark: its page, summary, tables and figures."""
