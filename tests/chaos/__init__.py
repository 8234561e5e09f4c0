"""Runs that are cut short at exact steps, again and again, and what must hold all the while."""
