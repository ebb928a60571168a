"""The single operations of the views, equal to Pillow's 8-bit arithmetic."""
