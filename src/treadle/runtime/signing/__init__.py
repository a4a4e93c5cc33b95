"""Signatures of documents: keys in files, keys held by gpg and key services, and what a signature proves."""
