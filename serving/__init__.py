"""The process that answers: lookups, pushes and predictions over HTTP, in Feast's wire format."""
