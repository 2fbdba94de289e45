"""Chatwright: from raw data and people's judgements to a chat assistant that sees."""
