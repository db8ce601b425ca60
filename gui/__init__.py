"""Pictures, reports and windows."""
