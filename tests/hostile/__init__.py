"""What a server is sent by clients that are broken, or mean it no good.

What must hold for each case: an answer within seconds, below 500, with an error that is a sentence
and holds no key, path or traceback; nothing billed that is refused; bounded memory; and after all
of it the right logits. `--long` draws 100,000 cases instead of thousands.
"""
