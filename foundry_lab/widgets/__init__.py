"""Panels for the lessons. Each has a picture and a table that need no browser."""
