"""Tokenizers and the building of vocabularies; nothing here imports mindspore."""

from __future__ import annotations
