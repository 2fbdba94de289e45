"""The chat page: pages as HTML, and what their scripts ask for as JSON."""
