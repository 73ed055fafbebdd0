"""Networks: what the store holds, how a session runs it, how styles become vectors."""
