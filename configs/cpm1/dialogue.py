"""Dialogues as CPM-1 was finetuned on them: lines with context and reply."""


def transform(data, num_sample, r):
    """The record of a line: what is read ends with the mark of the reply."""
    context, reply = ("".join(data[key].split()) for key in ("context", "reply"))
    return {"input": f"对话上文:{context} 回复:", "<ans>": reply}
