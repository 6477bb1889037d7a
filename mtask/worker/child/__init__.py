"""What runs in the process of a slot, beside the supervisor: it knows no vendor and no queue.

`loop` reads messages and sends results; `functions` calls the tasks' functions, `commands` starts their programs.
"""
