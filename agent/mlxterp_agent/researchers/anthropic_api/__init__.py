"""The researcher behind `--agent api`: a model of the Anthropic Messages API, or of any compatible service.

`researcher.py` is the researcher and its thread, `turn.py` what happens in that thread, `conversation.py`
what is sent, `tools.py` what the model can do, `supervisor_queue.py` what passes between the two threads.
Calls, faults and prices are those of `mlxterp.llm`.
"""
