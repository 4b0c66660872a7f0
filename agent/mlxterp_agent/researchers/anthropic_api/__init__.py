"""The researcher behind `--agent api`: a model of the Anthropic Messages API, or of any compatible service.

`researcher.py` has the researcher and its thread, `turn.py` a turn in that thread, `conversation.py` the
messages, `tools.py` the model's tools, `supervisor_queue.py` the queue between the two threads.
Calls, faults and prices are those of `mlxterp.llm`.
"""
