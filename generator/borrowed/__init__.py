"""Generators that nobody trains here: functions, networks and pipelines of other people."""
