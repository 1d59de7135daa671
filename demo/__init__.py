"""The demo: a real year of flights through the whole path, by CLI and HTTP only."""
