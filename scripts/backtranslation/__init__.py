"""Instruction backtranslation (Li et al. 2023, arXiv 2308.06259): the library under the workflow.

Nothing in here knows of Snakemake. Modules import heavy packages (torch, transformers, peft, trl)
inside the functions that need them, since every job is a process of its own.
"""
