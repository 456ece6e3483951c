"""Actors and routes of the server of questions."""
