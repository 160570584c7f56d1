"""Speed and scores beside other packages; developers' tools, not in the wheel."""
