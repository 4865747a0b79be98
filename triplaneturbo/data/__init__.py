"""Prompts and cameras."""

from triplaneturbo.data import multiprompt as multiprompt
